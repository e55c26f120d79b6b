"""Connections as attackers and broken clients use them: heads, addresses, wrong tokens, slow senders."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
from tests.unit.serve.running import eventually, limited, resident, serving

from tunesmith.serve import throttle
from tunesmith.serve.refusals import Refusal
from tunesmith.serve.settings import Limits, Settings
from tunesmith.serve.throttle import FREE, TOGETHER, Throttle

TOKEN = "a-long-random-line"
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def connect(server, seconds: float = 10, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=seconds, source_address=(source, 0))


def said(raw: socket.socket) -> tuple[int, dict[str, str], dict]:
    """Status, headers and JSON of the answer on a connection that ends with it."""
    text = b""
    while part := raw.recv(65536):
        text += part
    head, _, body = text.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, json.loads(body)["error"]


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"x: y\r\n" * 10_000, 431, "E413"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nx: " + b"y" * 100_000, 431, "E413"),
        (b"GET /" + b"a" * 2**20, 414, "E413"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "E410"),  # TLS
        (b"hello\r\n\r\n", 400, "E410"),
        (b"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n", 400, "E410"),
        (f"{HEAD}Content-Length: 3, 4\r\n\r\n".encode(), 400, "E410"),
        (f"{HEAD}Content-Length: -1\r\n\r\n".encode(), 400, "E410"),
        (f"{HEAD}Transfer-Encoding: gzip\r\n\r\n".encode(), 400, "E410"),
    ],
)
def test_w5_heads_that_are_too_large_or_none_are_refused_in_json(server, sent, status, code):
    before = resident()
    with connect(server) as raw:
        raw.sendall(sent)
        found, headers, error = said(raw)
    assert (found, error["code"], headers["content-type"]) == (status, code, "application/json")
    assert headers["connection"] == "close"
    assert error["fixes"]
    assert resident() - before < 20 << 20
    assert httpx.get(server.address + "/health").status_code == 200


def test_w5_a_chunk_that_is_none_ends_its_request_alone(server):
    with connect(server) as raw:
        raw.sendall(f"{HEAD}Transfer-Encoding: chunked\r\n\r\nzz\r\n".encode())
        found, _, error = said(raw)
    assert (found, error["code"]) == (400, "E410")
    assert httpx.get(server.address + "/health").status_code == 200


def test_w2_a_websocket_is_a_request_like_others(server):
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n"
    for origin, status in (("http://evil.example", 403), (None, 405)):
        told = f"Origin: {origin}\r\n" if origin else ""
        head = f"GET /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n{told}{upgrade}\r\n"
        with connect(server) as raw:
            raw.sendall(head.encode())
            assert raw.recv(65536).startswith(f"HTTP/1.1 {status}".encode())


def test_w1_wrong_tokens_slow_down_their_address_alone(tiny):
    with serving({"tiny": tiny}, Settings(token=TOKEN)) as running:
        guesser = httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2"))
        took = []
        for _ in range(FREE + 1):
            began = time.monotonic()
            answer = guesser.get(running.address + "/v1/models", headers={"Authorization": "Bearer guess"})
            took.append(time.monotonic() - began)
            assert answer.status_code == 401
        assert max(took[:FREE]) < throttle.DELAY <= took[FREE]
        began = time.monotonic()
        assert httpx.get(running.address + "/v1/models").status_code == 401  # the first of its address
        assert time.monotonic() - began < throttle.DELAY
        assert [model.id for model in running.client.models.list()] == ["tiny"]


def test_w1_many_guesses_at_once_are_not_looked_at(tiny, monkeypatch):
    monkeypatch.setattr(throttle, "DELAY", 3)
    with serving({"tiny": tiny}, Settings(token=TOKEN)) as running:
        for _ in range(FREE):
            assert httpx.get(running.address + "/health").status_code == 401
        waiting = [connect(running) for _ in range(TOGETHER)]
        for raw in waiting:
            raw.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        right = {"Authorization": f"Bearer {TOKEN}"}
        eventually(lambda: httpx.get(running.address + "/health", headers=right).status_code == 429)
        answer = httpx.get(running.address + "/health", headers=right)
        assert answer.json()["error"]["code"] == "E429"
        assert answer.headers["retry-after"] == "3"
        elsewhere = httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2"))
        assert elsewhere.get(running.address + "/health", headers=right).status_code == 200
        for raw in waiting:
            raw.close()


def test_addresses_are_forgotten(monkeypatch):
    monkeypatch.setattr(throttle, "ADDRESSES", 3)
    monkeypatch.setattr(throttle, "DELAY", 0)
    found = Throttle()
    for number in range(5):
        asyncio.run(found.note(f"10.0.0.{number}"))
    assert list(found.records) == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
    found.records["10.0.0.4"].wrong = 50
    found.records["10.0.0.4"].last -= throttle.FORGOTTEN + 1
    asyncio.run(found.note("10.0.0.4"))
    assert found.records["10.0.0.4"].wrong == 1
    found.records["10.0.0.4"].delayed = TOGETHER
    with pytest.raises(Refusal, match="E429"):
        found.check("10.0.0.4")
    found.check("10.0.0.9")


def test_w7_slow_heads_and_bodies_are_given_up_and_hold_nobody_back(tiny):
    with serving({"tiny": tiny}, limited(header_seconds=2.0, body_seconds=0.5)) as running:
        slow = [connect(running, 20) for _ in range(200)]
        ended = threading.Event()

        def trickle() -> None:
            """One byte after the other, so that no connection is ever idle."""
            text = b"POST /v1/completions HTTP/1.1\r\nx: " + b"y" * 1000
            for byte in range(len(text)):
                for raw in slow:
                    try:
                        raw.send(text[byte : byte + 1])
                    except OSError:
                        return
                if ended.wait(0.05):
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        took = []
        with httpx.Client() as client:
            for _ in range(50):
                began = time.monotonic()
                assert client.get(running.address + "/health").status_code == 200
                took.append(time.monotonic() - began)
        assert sorted(took)[-2] < 0.5
        for raw in slow:
            with contextlib.suppress(ConnectionResetError):  # it hung up though bytes still came
                assert raw.recv(10) == b""
        ended.set()
        thread.join()
        for raw in slow:
            raw.close()
        for body in ("{", "{" + " " * 100):
            with connect(running) as raw:
                raw.sendall(f"{HEAD}Content-Length: 1000\r\n\r\n{body}".encode())
                assert raw.recv(65536).startswith(b"HTTP/1.1 408")


def test_w7_connections_are_counted_by_address_and_together(tiny):
    with serving({"tiny": tiny}, limited(connections=6, connections_each=4, header_seconds=60)) as running:
        first = [connect(running) for _ in range(4)]
        eventually(lambda: not is_let_in(running, "127.0.0.1"))
        with connect(running) as raw:
            status, headers, error = said(raw)
        assert (status, error["code"], headers["retry-after"]) == (503, "E415", "1")
        second = [connect(running, source="127.0.0.2")]
        assert is_let_in(running, "127.0.0.2")
        second.append(connect(running, source="127.0.0.2"))
        eventually(lambda: not is_let_in(running, "127.0.0.3"))
        for raw in (*first, *second):
            raw.close()
        eventually(lambda: is_let_in(running, "127.0.0.1"))


def is_let_in(running, source: str) -> bool:
    transport = httpx.HTTPTransport(local_address=source)
    with httpx.Client(transport=transport) as client:
        try:
            return client.get(running.address + "/health").status_code == 200
        except httpx.TransportError:
            return False


def test_a_server_that_ended_starts_again_on_its_port(tiny):
    with serving({"tiny": tiny}) as running:
        port = running.port
        with connect(running) as raw:
            raw.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            raw.recv(1000)
    with serving({"tiny": tiny}, port=port) as again:
        assert again.port == port
        assert httpx.get(again.address + "/health").status_code == 200


def test_s15_only_loopback_is_listened_on_unless_told(server):
    from tunesmith.serve.server import listen

    assert Settings().host == "127.0.0.1"
    assert Limits() == Settings().limits
    lines = Path("/proc/net/tcp").read_text().splitlines()
    own = {line.split()[1] for line in lines if line.split()[3] == "0A"}
    ports = {entry.split(":")[1]: entry.split(":")[0] for entry in own}
    assert ports[f"{server.port:04X}"] == "0100007F"
    with listen("::1", 0) as six:
        assert six.getsockname()[0] == "::1"
