"""Streams: what fails before they begin and within them, clients that leave or do not read, and places that wait."""

import asyncio
import json
import socket
import threading
import time

import httpx
import openai
import pytest
from tests.unit.serve.running import HELLO, eventually, limited, resident, serving

from tunesmith.rollout import scheduler
from tunesmith.rollout.orders import Piece
from tunesmith.serve.mailbox import Mailbox
from tunesmith.serve.metrics import Metrics
from tunesmith.serve.refusals import Refusal
from tunesmith.serve.settings import Limits

CHAT = {"model": "tiny", "messages": HELLO, "max_tokens": 2}
LONG = {"model": "tiny", "messages": HELLO, "max_tokens": 480, "ignore_eos": True, "stream": True}


def post(server, body: dict) -> httpx.Response:
    return httpx.post(server.address + "/v1/chat/completions", json=body, timeout=60)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def opened(server, body: dict) -> socket.socket:
    """A connection on which the request was sent and nothing is read."""
    text = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", server.port))
    raw.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
    return raw


def test_a_full_queue_says_when_to_come_back(tiny):
    with serving({"tiny": tiny}, limited(batch_size=1, queue=2)) as running:
        held = [opened(running, LONG)]
        eventually(lambda: running.metric("answers_live") == 1)
        endless(running)
        held += [opened(running, LONG) for _ in range(2)]
        eventually(lambda: running.house.worker.waiting == 2)
        answer = post(running, CHAT)
        assert code(answer) == (429, "E415")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        patient = openai.OpenAI(base_url=f"{running.address}/v1", api_key="x", max_retries=8)
        for raw in held:
            raw.close()
        assert patient.chat.completions.create(**CHAT).usage.completion_tokens <= 2


@pytest.mark.parametrize("stream", [False, True])
def test_what_waits_too_long_for_a_place_is_told_to_come_back(tiny, stream):
    with serving({"tiny": tiny}, limited(batch_size=1, wait_seconds=0.3)) as running:
        held = opened(running, {**LONG, "n": 1, "logprobs": True, "top_logprobs": 20})
        eventually(lambda: running.metric("answers_live") == 1)
        endless(running)
        began = time.monotonic()
        answer = post(running, {**CHAT, "stream": stream})
        assert code(answer) == (503, "E486")
        assert time.monotonic() - began >= 0.3
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        embedded = running.house.worker.waiting
        assert embedded == 0
        held.close()
        eventually(lambda: running.pages == 0)
        assert post(running, CHAT).status_code == 200


def endless(running) -> None:
    """The answer that is being made now never ends by itself."""
    for seat in running.house.schedulers["tiny"].table.seats:
        seat.who.take = lambda said: None


def test_a_failure_while_decoding_fails_its_requests_alone(server, monkeypatch):
    def broken(*_):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "advance", broken)
        patch.setattr(server.house.schedulers["tiny"].table, "advance", broken)
        for name in ("tiny", "gemma"):
            for stream in (False, True):
                assert code(post(server, {**CHAT, "model": name, "stream": stream})) == (500, "E425")
    eventually(lambda: server.pages == 0)
    for name in ("tiny", "gemma"):
        assert post(server, {**CHAT, "model": name}).status_code == 200


@pytest.mark.parametrize("name", ["tiny", "gemma"])
def test_a_failure_within_a_stream_is_its_last_event(server, monkeypatch, name):
    own = server.house.schedulers[name]
    plain, calls = scheduler.advance, []

    def failing(logits, answers):
        calls.append(len(answers))
        if len(calls) > 5:
            raise RuntimeError("no memory")
        return plain(logits, answers)

    monkeypatch.setattr(scheduler, "advance", failing)
    if name == "tiny":
        monkeypatch.setattr(own.table, "advance", failing)
    with httpx.stream("POST", f"{server.address}/v1/chat/completions", json={**LONG, "model": name}) as stream:
        assert stream.status_code == 200
        lines = [line for line in stream.iter_lines() if line]
    assert len(calls) == 6
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "E425"
    calls.clear()
    settings = {"model": name, "messages": HELLO, "max_tokens": 480, "stream": True}
    with pytest.raises(openai.APIError, match="goes on"):
        list(server.client.chat.completions.create(**settings, extra_body={"ignore_eos": True}))
    eventually(lambda: server.pages == 0)


def test_w9_a_reader_that_is_too_slow_loses_its_stream(server):
    async def slowly() -> list[str]:
        mailbox = Mailbox(server.house.worker, Limits(pieces=3), Metrics(server.house))
        found: list[str] = []
        mailbox.orders = []
        for _ in range(20):
            mailbox.deliver(Piece(0, "x", (), 1))
            await asyncio.sleep(0)
        while not mailbox.box.empty():
            piece = mailbox.box.get_nowait()
            found.append(piece.diagnostic.code if isinstance(piece, Refusal) else "piece")
        return found

    found = asyncio.run(slowly())
    assert found[:3] == ["piece"] * 3
    assert found[-1] == "E424"


def test_w9_clients_that_never_read_are_given_up_and_hold_nobody_back(tiny, evidence):
    with serving({"tiny": tiny}, limited(send_seconds=0.5, pieces=400)) as running:
        body = {**LONG, "n": 8, "logprobs": True, "top_logprobs": 20}
        deaf = [opened(running, body) for _ in range(2)]
        eventually(lambda: running.metric("answers_live") == 16)
        answers = [post(running, CHAT) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200] * 3
        eventually(lambda: running.metric("answers_live") == 0 and running.pages == 0, 60)
        assert running.metric("tokens_generated_total") < 16 * 480
        for raw in deaf:
            raw.close()
    evidence("W9", claim="answers of clients that never read, given up with all their pages", figure="16 of 16")


def test_clients_that_leave_mid_stream_give_their_pages_back_at_once(tiny):
    with serving({"tiny": tiny}) as running:
        held = [opened(running, {**LONG, "seed": seed}) for seed in range(12)]
        eventually(lambda: running.metric("answers_live") == 12)
        made = running.metric("tokens_generated_total")
        for raw in held[:11]:
            raw.close()
        eventually(lambda: running.metric("answers_live") == 1)
        assert running.metric("tokens_generated_total") - made < 11 * 400
        assert running.pages <= 8  # those of one answer
        held[11].close()
        eventually(lambda: running.pages == 0)


def drop(running, count: int, threads: int = 8) -> None:
    """Streams whose client leaves after the first piece."""

    def run(number: int) -> None:
        with httpx.Client() as client:
            for seed in range(number, count, threads):
                body = {**LONG, "seed": seed, "messages": [{"role": "user", "content": "word " * (seed % 90)}]}
                with client.stream("POST", running.address + "/v1/chat/completions", json=body) as stream:
                    next(stream.iter_bytes())

    own = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in own:
        thread.start()
    for thread in own:
        thread.join()


@pytest.mark.nightly
@pytest.mark.row("W18")
def test_memory_is_flat_over_a_thousand_dropped_streams(tiny_bf16, evidence):
    with serving({"tiny": tiny_bf16}) as running:
        drop(running, 300)
        before, objects = resident(), len(running.house.worker.schedulers[0].reserved)
        drop(running, 1000)
        eventually(lambda: running.pages == 0)
        grown = resident() - before
        evidence("W18", claim="MiB grown by 1,000 dropped streams", figure=f"{grown / 2**20:.1f}")
        assert grown < 8 << 20
        assert objects == len(running.house.worker.schedulers[0].reserved) == 0
