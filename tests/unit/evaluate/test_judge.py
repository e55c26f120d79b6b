"""A judge on this machine: what it says, what it fails to say, and what is sent to it."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tunesmith.errors import MachineError, UsageError
from tunesmith.evaluate.judge import Judge, endpoint, read_verdict
from tunesmith.evaluate.label_config import JudgeConfig
from tunesmith.evaluate.labellers import Question
from tunesmith.rollout.journal import Journal
from tunesmith.rollout.prompts import Prompt
from tunesmith.types import Message

PROMPT = Prompt((Message("system", "Be kind."), Message("user", "How are you?")), "a.jsonl", 1)
GOOD = Question(PROMPT, "GOOD day", "go away")


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answer: Any) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.seen: list[dict] = []
        self.headers_seen: list[dict] = []
        self.lock = threading.Lock()
        self.busy, self.most = 0, 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append(sent)
            self.server.headers_seen.append(dict(self.headers))
            self.server.busy += 1
            self.server.most = max(self.server.most, self.server.busy)
            number = len(self.server.seen)
        try:
            status, said, headers = self.server.answer(sent, number)
        finally:  # before the client knows: it may send the next one at once
            with self.server.lock:
                self.server.busy -= 1
        try:
            content = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
        except OSError:  # the client did not wait
            pass

    def log_message(self, format: str, *args: Any) -> None:
        pass


def says(text: Any, status: int = 200, **headers: str):
    return status, {"choices": [{"message": {"role": "assistant", "content": text}}]}, headers


def fair(sent: dict, _: int):
    """Prefers the answer with GOOD in it, wherever it stands."""
    first = sent["messages"][1]["content"].split("[Answer A]")[1].split("[End of answer A]")[0]
    second = sent["messages"][1]["content"].split("[Answer B]")[1]
    return says("Thinking.\n\n" + ("A" if "GOOD" in first else "B" if "GOOD" in second else "TIE"))


@contextmanager
def judge(folder, answer, **settings):
    server = Server(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    config = JudgeConfig(url=f"http://127.0.0.1:{server.server_port}/v1", model="m", **{"timeout": 5.0, **settings})
    try:
        with Journal(folder / "votes.jsonl") as votes:
            yield Judge(config, votes, wait=0.01), server
    finally:
        server.shutdown()
        server.server_close()


def test_both_orders_are_asked_and_a_fair_judge_finds_the_better_answer(tmp_path):
    with judge(tmp_path, fair) as (fair_judge, server):
        questions = [GOOD, Question(PROMPT, "no", "GOOD"), Question(PROMPT, "x", "y")]
        assert fair_judge.compare(questions) == ["first", "second", "tie"]
        assert len(server.seen) == 6
        assert fair_judge.warnings() == []
        asked = server.seen[0]
        assert (asked["model"], asked["temperature"]) == ("m", 0)
        assert "system: Be kind.\n\nuser: How are you?" in asked["messages"][1]["content"]
        assert "helpful" in asked["messages"][0]["content"]


def test_a_judge_that_follows_the_place_decides_nothing_and_is_reported(tmp_path):
    with judge(tmp_path, lambda sent, number: says("A")) as (biased, _):
        assert biased.compare([GOOD, Question(PROMPT, "a", "b")]) == ["tie", "tie"]
        assert [warning.code for warning in biased.warnings()] == ["W261"]


def test_garbage_counts_as_a_tie_and_is_reported(tmp_path):
    with judge(tmp_path, lambda sent, number: says("Both are nice, A perhaps.")) as (vague, _):
        assert vague.compare([GOOD]) == ["tie"]
        (warning,) = vague.warnings()
        assert warning.code == "W260"
        assert "2 of 2" in warning.message
        assert "A perhaps" in warning.evidence[0]


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A", "A"),
        ("because\n**B**\n", "B"),
        ("[[tie]]", "TIE"),
        ("Tie.", "TIE"),
        ("A\nor maybe not", "unclear"),
        ("Answer A", "unclear"),
        ("AB", "unclear"),
        ("", "unclear"),
    ],
)
def test_only_a_last_line_of_one_word_is_a_verdict(reply, verdict):
    assert read_verdict(reply) == verdict


def test_failures_are_tried_again_and_verdicts_are_kept(tmp_path):
    def shaky(sent: dict, number: int):
        return (
            says("x", status=503)
            if number % 3 == 1
            else (429, b"slow down", {"Retry-After": "0"})
            if (number % 3 == 2)
            else fair(sent, number)
        )

    with judge(tmp_path, shaky, concurrency=1) as (patient, server):
        assert patient.compare([GOOD]) == ["first"]
        assert len(server.seen) == 6
    with judge(tmp_path, lambda sent, number: says("", status=500)) as (again, server):
        assert again.compare([GOOD]) == ["first"]  # nothing is asked twice
        assert server.seen == []


@pytest.mark.parametrize("reply", [(500, b"boom", {}), (200, b"<html>", {}), (200, b'{"choices": []}', {}), says(None)])
def test_a_judge_that_never_replies_stops_the_work_and_keeps_what_was_said(tmp_path, reply):
    def breaks(sent: dict, number: int):
        return fair(sent, number) if number <= 2 else reply

    with (
        judge(tmp_path, breaks, concurrency=1, retries=1) as (broken, _),
        pytest.raises(MachineError, match="E267") as caught,
    ):
        broken.compare([GOOD, Question(PROMPT, "a", "b")])
    assert "2 attempts" in caught.value.diagnostic.evidence[0]
    with judge(tmp_path, fair) as (mended, server):
        assert mended.compare([GOOD, Question(PROMPT, "a", "b")]) == ["first", "tie"]
        assert len(server.seen) == 2


def test_slow_replies_are_waited_for_and_slower_ones_are_not(tmp_path):
    def slow(sent: dict, number: int):
        time.sleep(0.2)
        return fair(sent, number)

    with judge(tmp_path, slow, timeout=5.0) as (patient, _):
        assert patient.compare([GOOD]) == ["first"]
    started = time.monotonic()
    with (
        judge(tmp_path, slow, timeout=0.05, retries=1) as (hasty, _),
        pytest.raises(MachineError, match=r"no reply within 0\.05 s"),
    ):
        hasty.compare([Question(PROMPT, "GOOD", "later")])
    assert time.monotonic() - started < 3


def test_nobody_at_the_address(tmp_path):
    config = JudgeConfig(url="http://127.0.0.1:9/v1", model="m", retries=0)
    with Journal(tmp_path / "votes") as votes, pytest.raises(MachineError, match="E267"):
        Judge(config, votes, wait=0.01).compare([GOOD])


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_refusals_are_not_tried_again_and_redirects_not_followed(tmp_path, status):
    reply = (status, b"no such model", {"Location": "http://127.0.0.1:9/"} if status == 302 else {})
    with (
        judge(tmp_path, lambda sent, number: reply, concurrency=1) as (strict, server),
        pytest.raises(UsageError, match=f"HTTP {status}") as caught,
    ):
        strict.compare([GOOD])
    assert caught.value.diagnostic.code == "E266"
    assert len(server.seen) == 1


def test_the_key_comes_from_the_environment_and_is_written_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", "secret-canary")
    with judge(tmp_path, fair) as (plain, server):
        plain.compare([GOOD])
        assert all("Authorization" not in headers for headers in server.headers_seen)
    with judge(tmp_path, fair, key_variable="OTHER_KEY", criteria="Shorter.") as (keyed, server):
        keyed.compare([GOOD])  # other criteria: asked anew
        assert [headers["Authorization"] for headers in server.headers_seen] == ["Bearer secret-canary"] * 2
    with (
        judge(tmp_path, lambda *_: (401, b"", {}), key_variable="OTHER_KEY", criteria="X") as (refused, _),
        pytest.raises(UsageError) as caught,
    ):
        refused.compare([GOOD])
    assert "secret-canary" not in str(caught.value)
    assert all(b"secret-canary" not in path.read_bytes() for path in tmp_path.iterdir())


def test_no_more_requests_at_once_than_allowed(tmp_path):
    def slow(sent: dict, number: int):
        time.sleep(0.02)
        return fair(sent, number)

    with judge(tmp_path, slow, concurrency=3) as (careful, server):
        careful.compare([Question(PROMPT, f"GOOD {index}", "bad") for index in range(8)])
        assert 1 < server.most <= 3


def test_addresses():
    assert endpoint("http://h:8000") == "http://h:8000/v1/chat/completions"
    assert endpoint("https://h/v1/") == "https://h/v1/chat/completions"
    assert endpoint("https://h/api/chat/completions?v=2") == "https://h/api/chat/completions?v=2"
    for url in ("file:///etc/passwd", "ftp://h/v1", "localhost:8000", "http://"):
        with pytest.raises(UsageError, match="E266"):
            endpoint(url)
