"""Bodies, requests and errors, piece by piece and without a server."""

import asyncio
import json

import pytest
from starlette.requests import Request

from tunesmith.errors import BadInput, Fix, MachineError, ModelError, NumericalError, UsageError, Where
from tunesmith.serve.body import depth_of, parse, read_json
from tunesmith.serve.guard import is_own
from tunesmith.serve.refusals import Refusal, body_of, bug, status_of
from tunesmith.serve.settings import Limits, Settings, one_form, read_host
from tunesmith.serve.wire import ChatAsked, CompletionAsked, EmbeddingAsked, ScoreAsked, read

WRONG_HOSTS = [
    *("", " ", ":", ":80", "[::1", "::1", "[::1].evil.com", "[::1]evil", "[::1]:", "[::1]:x", "[::1]:80:90", "[]"),
    *("[127.0.0.1]", "[localhost]", "[::1%lo]", "[::1%25lo]:80", "[:::]", "localhost:80.evil.com", "localhost:"),
    *("localhost:65536", "localhost:999999", "localhost:-1", "localhost:+80", "localhost: 80", "localhost:80,evil"),
    *(
        "localhost,evil.com",
        "localhost evil.com",
        "evil.com@localhost",
        "localhost@evil.com",
        "localhost/",
        "//localhost",
    ),
    *(
        "localhost.evil.com",
        "127.0.0.1.evil.com",
        "127.0.0.1.nip.io",
        "evil.localhost",
        "localhost.",
        "localhost..evil",
    ),
    *(
        "localhost#",
        "localhost?",
        "localhost\\.evil.com",
        "http://localhost",
        "localhost:\u0668\u0660",
        "loc\u0430lhost",
    ),
    *(
        "127.1",
        "0x7f.1",
        "2130706433",
        "0177.0.0.1",
        "127.0.0.1\x00",
        "localhost\n",
        "box.example.evil",
        "evilbox.example",
    ),
]
LIMITS = Limits(body_bytes=100, body_seconds=0.05, depth=4)


def read_parts(parts: list[bytes], headers: dict[str, str], pause: float = 0.0, ends: bool = True) -> dict:
    """What is read of a body that comes in these parts."""
    left = list(parts)

    async def receive() -> dict:
        await asyncio.sleep(pause)
        if not left and not ends:
            return {"type": "http.disconnect"}
        part = left.pop(0) if left else b""
        return {"type": "http.request", "body": part, "more_body": bool(left) or not ends}

    told = [(key.encode(), value.encode()) for key, value in headers.items()]
    scope = {"type": "http", "method": "POST", "headers": told}
    return asyncio.run(read_json(Request(scope, receive), LIMITS))


JSON = {"content-type": "application/json; charset=utf-8"}


def test_a_body_may_come_in_parts():
    assert read_parts([b'{"a"', b": [1", b", 2]}"], JSON) == {"a": [1, 2]}
    assert read_parts([b'{"a": "\\u00e9\xc3\xa9"}'], {**JSON, "content-length": "17"}) == {"a": "éé"}


@pytest.mark.parametrize(
    ("parts", "headers", "given", "code", "status"),
    [
        ([b"{}"], {}, {}, "E419", 415),
        ([b"{}"], {"content-type": "text/json"}, {}, "E419", 415),
        ([], {**JSON, "content-length": "101"}, {}, "E413", 413),
        ([b" " * 60, b" " * 60], JSON, {}, "E413", 413),
        ([b" " * 60, b" " * 60], {**JSON, "content-length": "2"}, {}, "E413", 413),
        ([b"{", b"}"], JSON, {"pause": 0.04}, "E424", 408),
        ([b"{"], JSON, {"ends": False}, "E424", 408),
    ],
)
def test_a_body_of_another_kind_size_or_pace_is_refused(parts, headers, given, code, status):
    with pytest.raises(Refusal, match=code) as caught:
        read_parts(parts, headers, **given)
    assert status_of(caught.value) == status


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"a": {"b": [[[1]]]}}', "nested more than 4 deep"),
        (b'{"b": 1, "a": 1, "a": 2}', "the key 'a' occurs twice"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON value"),
        (b'{"a": 1e400}', "1e400 is too large"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"[1]", "it is not an object"),
        (b'{"a": 1} {}', "Extra data"),
        (b'{"a": "\xed\xa0\x80"}', "utf-8"),
    ],
)
def test_what_is_no_strict_json_says_why(body, told):
    with pytest.raises(Refusal, match="E410") as caught:
        parse(body, LIMITS)
    assert told in str(caught.value)


def test_depth_counts_brackets_outside_of_texts():
    assert depth_of(b'{"[[[[": "]]{{", "a": [1, [2]]}') == 3
    assert depth_of(b'"\\"[["') == 0
    assert depth_of(b"[" * 100_000) == 100_000
    assert depth_of(b'"' + b"\\" * 200_000) == 0  # no quadratic time


def test_numbers_and_texts_come_through_as_they_are():
    given = {"a": 0.1, "b": 2**63, "c": "\u2028 <script>", "d": None, "e": [True, -0.0]}
    assert parse(json.dumps(given).encode(), Limits()) == given


@pytest.mark.parametrize(
    ("kind", "body", "field", "told"),
    [
        (ChatAsked, {"messages": [{"role": "user", "content": "x"}]}, "model", "required"),
        (ChatAsked, {"model": "m", "messages": [{"role": "user", "content": 3}]}, "messages.0.content", ""),
        (ChatAsked, {"model": "m", "messages": [{"role": "user", "content": "x"}], "n": 0}, "n", "greater"),
        (ChatAsked, {"model": "m", "messages": [{"role": "user", "content": "x"}], "stop": ["a"] * 17}, "stop", ""),
        (ChatAsked, {"model": "m", "messages": [{"role": "user", "content": "x"}], "stop": ""}, "stop", ""),
        (
            ChatAsked,
            {"model": "m", "messages": [{"role": "user", "content": "x"}], "top_logprobs": 21},
            "top_logprobs",
            "",
        ),
        (ChatAsked, {"model": "m", "messages": [{"role": "user", "content": "x"}], "store": True}, "store", ""),
        (CompletionAsked, {"model": "m", "prompt": "x", "best_of": 2}, "best_of", ""),
        (CompletionAsked, {"model": "m", "prompt": "x", "echo": True}, "echo", ""),
        (CompletionAsked, {"model": "m", "prompt": "x", "max_token": 3}, "max_token", "did you mean max_tokens?"),
        (EmbeddingAsked, {"model": "m", "input": []}, "input", ""),
        (EmbeddingAsked, {"model": "m", "input": "x", "encoding_format": "hex"}, "encoding_format", ""),
        (ScoreAsked, {"model": "m", "input": [{"prompt": "x"}]}, "input.0.answer", "required"),
    ],
)
def test_a_request_that_is_wrong_names_its_field(kind, body, field, told):
    with pytest.raises(Refusal, match="E411") as caught:
        read(kind, body)
    found = body_of(caught.value)["error"]
    assert found["param"] == field or found["param"].startswith(f"{field}.")
    assert told in found["message"]
    assert status_of(caught.value) == 400


def test_what_clients_write_is_read():
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "1", "tool_call_id": "c"},
    ]
    asked = read(ChatAsked, {"model": "m", "messages": turns, "tools": [tool], "stop": "x", "user": "me"})
    messages = [turn.message() for turn in asked.messages]
    assert [message.role for message in messages] == ["system", "user", "assistant", "tool"]
    assert (messages[1].content, messages[2].content, messages[3].tool_call_id) == ("ab", "", "c")
    assert messages[2].tool_calls[0]["function"]["name"] == "f"
    assert asked.stops == ("x",)
    assert "strict" not in asked.tools[0].to_json()["function"]
    assert read(CompletionAsked, {"model": "m", "prompt": [[1, 2], [3]]}).prompt == [[1, 2], [3]]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (Refusal("E415", "full", fix="wait"), 429, "rate_limit_error"),
        (Refusal("E415", "full", fix="wait", status=503), 503, "server_error"),
        (Refusal("E416", "wrong", fix="x"), 401, "authentication_error"),
        (Refusal("E417", "foreign", fix="x"), 403, "permission_error"),
        (Refusal("E412", "none", fix="x"), 404, "not_found_error"),
        (Refusal("E486", "waited", fix="x"), 503, "server_error"),
        (UsageError("E020", "twice"), 400, "invalid_request_error"),
        (BadInput("E193", "odd"), 400, "invalid_request_error"),
        (MachineError("E422", "taken"), 503, "server_error"),
        (NumericalError("E151", "NaN"), 500, "server_error"),
        (bug(ValueError("secret /home/x")), 500, "server_error"),
    ],
)
def test_every_kind_of_error_has_its_status(error, status, kind):
    found = body_of(error)["error"]
    assert (status_of(error), found["type"]) == (status, kind)
    assert found["code"] == error.diagnostic.code
    assert "secret" not in json.dumps(found)


def test_an_error_says_its_field_fixes_and_evidence():
    error = ModelError("E080", "odd", where=Where(field="a.b"), evidence=["seen"], fixes=[Fix("do", command="run it")])
    found = body_of(error)["error"]
    assert (found["param"], found["fixes"], found["evidence"]) == ("a.b", ["run it"], ["seen"])
    assert found["message"].endswith("run it")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("localhost:1", ("localhost", 1)),
        (" LOCALHOST ", ("localhost", None)),
        ("[::1]:80", ("::1", 80)),
        ("[0:0::0001]", ("::1", None)),
        ("[::ffff:127.0.0.1]:65535", ("::ffff:127.0.0.1", 65535)),
        ("a.b", ("a.b", None)),
    ],
)
def test_a_host_has_a_name_and_a_port(given, name):
    found = read_host(given)
    assert found is not None
    assert (one_form(found[0]), found[1]) == (one_form(name[0]), name[1])


@pytest.mark.parametrize("given", WRONG_HOSTS)
def test_what_is_no_host_is_none(given):
    assert not Settings(names=("box.example",)).allows(given)
    assert not Settings("192.168.0.2", token="t", names=("box.example",)).allows(given)


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("http://localhost:1", "localhost:1", True),
        ("https://box.example", "box.example", True),
        ("http://localhost:80", "localhost", True),
        ("https://localhost", "localhost:443", True),
        ("http://[::1]:9", "[::1]:9", True),
        ("http://localhost:2", "localhost:1", False),
        ("http://localhost", "localhost:8000", False),
        ("https://localhost", "localhost:80", False),
        ("http://localhost:1/", "localhost:1", False),
        ("http://me@localhost:1", "localhost:1", False),
        ("ftp://localhost:1", "localhost:1", False),
        ("localhost:1", "localhost:1", False),
        ("null", "localhost:1", False),
        ("", "localhost:1", False),
    ],
)
def test_a_page_is_the_servers_own_by_scheme_name_and_port(origin, host, own):
    assert is_own(origin, host) is own
