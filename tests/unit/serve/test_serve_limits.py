"""Who may ask, what is refused, and that no request ends the server."""

import contextlib
import socket

import httpx
import pytest
from tests.tiny import tiny_model_folder
from tests.unit.serve.running import HELLO, limited, serving

from tunesmith.errors import MachineError, Unsafe
from tunesmith.serve.server import listen
from tunesmith.serve.settings import Settings

CHAT = {"model": "tiny", "messages": HELLO, "max_tokens": 2}
TOKEN = "a-long-random-line"
ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/score"),
    ("GET", "/metrics"),
    ("GET", "/health"),
    ("GET", "/nothing"),
]


@pytest.fixture(scope="module")
def guarded(tiny):
    with serving({"tiny": tiny}, Settings(token=TOKEN, names=("box.example",))) as running:
        yield running


def ask(server, method="POST", path="/v1/chat/completions", **given) -> httpx.Response:
    if method == "POST" and not {"json", "content"} & given.keys():
        given["json"] = CHAT
    return httpx.request(method, server.address + path, **given)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_w1_every_route_wants_the_token(guarded, method, path):
    guarded_by = guarded.house.worker  # the same server throughout
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        answer = ask(guarded, method, path, headers=headers)
        assert code(answer) == (401, "E416")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert guarded_by.thread.is_alive()
    allowed = ask(guarded, method, path, headers={"Authorization": f"Bearer {TOKEN}"})
    assert allowed.status_code in (200, 400, 404)


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:8000"}, 0),
        ({"Host": "127.0.0.1"}, 0),
        ({"Host": "[::1]:80"}, 0),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "192.168.0.9"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:2"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 0),
    ],
)
def test_w2_foreign_hosts_and_pages_are_refused_everywhere(server, method, path, headers, status):
    answer = ask(server, method, path, headers=headers)
    assert answer.status_code == 403 if status else answer.status_code in (200, 400, 404)
    assert "access-control-allow-origin" not in answer.headers


def test_w2_names_that_were_allowed_are(guarded):
    headers = {"Host": "box.example", "Authorization": f"Bearer {TOKEN}"}
    assert ask(guarded, "GET", "/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "given", "expected"),
    [
        ("GET", "/v1/chat/completions", {}, (405, "E419")),
        ("OPTIONS", "/v1/chat/completions", {}, (405, "E419")),
        ("DELETE", "/v1/models/tiny", {}, (405, "E419")),
        ("POST", "/v1/chat/completions", {"data": {"a": "b"}}, (415, "E419")),
        ("POST", "/v1/chat/completions", {"files": {"a": b"b"}}, (415, "E419")),
        ("POST", "/v1/chat/completions", {"content": "{}", "headers": {"Content-Type": "text/plain"}}, (415, "E419")),
        ("GET", "/v1/../../etc/passwd", {}, (404, "E419")),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", {}, (404, "E412")),
        ("GET", "/" + "a" * 9000, {}, (414, "E413")),
    ],
)
def test_w3_w4_forms_methods_and_paths(server, method, path, given, expected):
    answer = httpx.request(method, server.address + path, **given)
    assert code(answer) == expected


def test_routes_are_named_as_a_person_writes_them(server):
    fixes = ask(server, "GET", "/nothing").json()["error"]["fixes"]
    assert "/v1/models, /v1/models/NAME, /v1/chat/completions" in fixes[0]
    message = httpx.delete(f"{server.address}/v1/models/tiny").json()["error"]["message"]
    assert "/v1/models/NAME takes GET" in message
    assert "{" not in message + fixes[0]


@pytest.mark.parametrize(
    "body",
    ["", "[]", "{", '{"a": NaN}', '{"a": 1e999}', '{"a": 1, "a": 2}', '{"a":' * 70 + "1" + "}" * 70, b"\xff", '"x"'],
)
def test_w6_what_is_no_strict_json_is_refused(server, body):
    headers = {"Content-Type": "application/json"}
    assert code(ask(server, content=body, headers=headers)) == (400, "E410")


@pytest.mark.parametrize(
    ("change", "expected", "param"),
    [
        ({"model": "tinny"}, (404, "E412"), "model"),
        ({"temperatur": 1}, (400, "E411"), "temperatur"),
        ({"temperature": -1}, (400, "E411"), "temperature"),
        ({"messages": []}, (400, "E411"), "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, (400, "E411"), "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, (400, "E411"), None),
        ({"n": 1000}, (400, "E411"), "n"),
        ({"top_logprobs": 2}, (400, "E411"), "top_logprobs"),
        ({"logit_bias": {"99999": 1}}, (400, "E411"), "logit_bias"),
        ({"max_tokens": 600}, (400, "E414"), "max_tokens"),
        ({"messages": [{"role": "user", "content": "word " * 900}]}, (400, "E414"), "messages"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, (400, "E423"), "tools"),
        ({"tool_choice": "required"}, (400, "E411"), "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, (400, "E411"), "response_format.json_schema"),
    ],
)
def test_what_cannot_be_served_names_its_field(server, change, expected, param):
    answer = ask(server, json={**CHAT, **change})
    assert code(answer) == expected
    error = answer.json()["error"]
    assert param is None or error["param"] == param
    assert error["fixes"]
    assert error["type"] in ("invalid_request_error", "not_found_error")


@pytest.mark.parametrize(
    ("prompt", "param"), [("", "prompt"), (["Hi", ""], "prompt.1"), ([[5], []], "prompt.1"), (["", "Hi"], "prompt.0")]
)
def test_an_empty_prompt_is_told_as_one(server, prompt, param):
    error = ask(server, path="/v1/completions", json={"model": "tiny", "prompt": prompt}).json()["error"]
    assert (error["code"], error["param"]) == ("E414", param)
    assert f"{param} is empty" in error["message"]
    assert "shorten" not in str(error)
    assert error["fixes"] == ["give some text, or leave the entry out"]


def test_messages_that_the_template_makes_nothing_of_are_told(tmp_path):
    silent = tiny_model_folder(tmp_path, template="{% for message in messages %}{{ message['content'] }}{% endfor %}")
    with serving({"tiny": silent}) as running:
        error = ask(running, json={**CHAT, "messages": [{"role": "user", "content": ""}]}).json()["error"]
    assert (error["code"], error["param"]) == ("E414", "messages")
    assert "the chat template makes nothing of these messages" in error["message"]


def test_a_model_is_not_asked_for_what_it_does_not_give(server):
    assert code(ask(server, path="/v1/embeddings", json={"model": "tiny", "input": "x"})) == (400, "E423")
    assert code(ask(server, path="/v1/score", json={"model": "tiny", "input": ["x"]})) == (400, "E423")


def test_w5_large_bodies_are_refused_before_they_are_read(server):
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        raw.sendall(f"{head}Content-Length: 1000000000\r\n\r\n".encode())
        assert raw.recv(65536).startswith(b"HTTP/1.1 413")

    def endless():
        for _ in range(100):
            yield b"x" * 2**20

    headers = {"Content-Type": "application/json"}
    with contextlib.suppress(httpx.WriteError):  # it answered and hung up while the client was still sending
        assert ask(server, content=endless(), headers=headers).status_code == 413
    assert ask(server, "GET", "/health").status_code == 200


def test_an_order_that_the_cache_cannot_hold_is_refused_and_others_wait_for_room(tiny):
    pages = 4
    with serving({"tiny": tiny}, limited(cache_bytes=pages * page_bytes(tiny))) as running:
        scheduler_ = running.house.schedulers["tiny"]
        assert scheduler_.room == pages
        assert code(ask(running, json={**CHAT, "max_tokens": 400})) == (400, "E414")
        answers = [running.client.completions.create(model="tiny", prompt="Hi", max_tokens=20, n=2) for _ in range(3)]
        assert all(len(answer.choices) == 2 for answer in answers)
        assert len(scheduler_.engine.pages.users) <= 64  # never more than were allotted at first


def page_bytes(folder) -> int:
    from tunesmith.export.opening import open_model
    from tunesmith.rollout.engine.engine import Engine

    return Engine(open_model(str(folder)).model).pages.bytes_of(1)


def test_weights_that_are_not_finite_fail_with_their_code(server, monkeypatch):
    engine = server.house.schedulers["tiny"].engine
    read = engine.read
    monkeypatch.setattr(
        engine, "read", lambda prompts: (lambda rows, logits: (rows, logits * float("nan")))(*read(prompts))
    )
    assert code(ask(server)) == (500, "E151")
    monkeypatch.undo()
    assert ask(server).status_code == 200


def test_w16_a_port_that_is_taken_is_told_with_one_that_is_free(server):
    with pytest.raises(MachineError, match="E422") as caught:
        listen("127.0.0.1", server.port)
    assert f"--port {server.port + 1}" in str(caught.value) or "is free" in str(caught.value)


def test_a_name_that_is_no_address_is_told_as_one():
    with pytest.raises(MachineError, match="E422") as caught:
        listen("no.such.host.invalid", 0)
    assert caught.value.diagnostic.where.field == "--host"
    assert "--host 127.0.0.1" in str(caught.value)


def test_an_address_that_others_reach_needs_a_token():
    for host in ("192.168.0.2", "::", "box.example"):
        with pytest.raises(Unsafe, match="E421"):
            Settings(host)
        assert Settings(host, token=TOKEN).allows("192.168.0.2:8000")
        assert not Settings(host, token=TOKEN).allows("evil.example")
    for host in ("localhost", "127.0.0.1", "127.0.0.2", "::1"):
        assert Settings(host).allows("localhost:1")
        assert not Settings(host).allows("192.168.0.2")
