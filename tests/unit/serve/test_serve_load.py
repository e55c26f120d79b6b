"""Many clients at once: every answer whole, no error, memory bounded."""

import random
import threading
import time

import httpx
import openai
import pytest
from tests.unit.serve.running import HELLO, Running, eventually, limited, resident, serving


def one(client: openai.OpenAI, rng: random.Random, wanted: dict[int, str]) -> None:
    """A request of some kind; the seeds are few, so that equal ones must have equal answers."""
    seed = rng.randrange(8)
    settings = {"model": "tiny", "messages": HELLO, "seed": seed, "max_tokens": 24, "extra_body": {"ignore_eos": True}}
    kind = rng.randrange(4)
    if kind == 0:
        with client.chat.completions.create(**settings, stream=True) as stream:
            next(iter(stream))  # and goes
        return
    if kind == 1:
        chunks = client.chat.completions.create(**settings, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    else:
        text = client.chat.completions.create(**settings, n=kind).choices[0].message.content
    assert wanted.setdefault(seed, text) == text


def crowd(server: Running, clients: int, seconds: float) -> tuple[int, list[BaseException]]:
    errors: list[BaseException] = []
    done = [0] * clients
    wanted: dict[int, str] = {}
    end = time.monotonic() + seconds
    transport = httpx.Client(limits=httpx.Limits(max_connections=clients + 10), timeout=120)
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="x", max_retries=0, http_client=transport)

    def run(number: int) -> None:
        rng = random.Random(number)
        try:
            while not done[number] or time.monotonic() < end:
                one(client, rng, wanted)
                done[number] += 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done), errors


def test_fifty_clients_at_once(tiny):
    with serving({"tiny": tiny}) as server:
        done, errors = crowd(server, 50, 0)
        assert errors == []
        assert done == 50
        eventually(lambda: server.pages == 0)


@pytest.mark.nightly
@pytest.mark.row("W18")
def test_two_hundred_clients_for_a_minute(tiny, evidence):
    with serving({"tiny": tiny}, limited(cache_bytes=64 << 20)) as server:
        crowd(server, 200, 5)
        before = resident()
        done, errors = crowd(server, 200, 60)
        assert errors == []
        assert done > 200
        eventually(lambda: server.pages == 0)
        grown = resident() - before
        tokens = server.metric("tokens_generated_total")
        claim = "200 clients without a pause for a minute: requests, tokens, errors, MiB grown"
        evidence("W18", claim=claim, figure=f"{done:,}, {tokens:,.0f}, 0, {grown / 2**20:.1f}")
        assert grown < 64 << 20
