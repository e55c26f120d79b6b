"""Rows of the fault table that are about what a request names: pages, URLs, paths, and headers that cost much."""

import json
import socket
import threading
from collections import Counter
from urllib.parse import quote

import pytest
from tests.tiny import tiny_model_folder
from tests.unit.serve.asking import Header, ask, post, processor_seconds, watching
from tests.unit.serve.running import HELLO, eventually, serving

from tunesmith.serve.settings import Limits

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
BODIES = {
    "/v1/chat/completions": {"model": "tiny", "messages": HELLO, "max_tokens": 1},
    "/v1/completions": {"model": "tiny", "prompt": "a", "max_tokens": 1},
    "/v1/embeddings": {"model": "tiny", "input": "a"},
    "/v1/score": {"model": "tiny", "input": ["a"]},
}
PATHS = ("/v1/models", "/v1/models/tiny", *BODIES, "/metrics", "/health", "/nothing", "/")
EVIL = "http://evil.example"


def foreign(own: str) -> dict[str, list[Header]]:
    """Headers of requests that a page of another site can bring about, or a forger of them."""
    return {
        "evil Host": [("Host", "evil.example")],
        "a name that begins as ours": [("Host", "127.0.0.1.evil.example")],
        "brackets and more": [("Host", "[::1].evil.com")],
        "a port and more": [("Host", "localhost:80.evil.com")],
        "an empty Host": [("Host", "")],
        "no Host": [("Host", None)],
        "two Hosts": [("Host", own), ("Host", "evil.example")],
        "a list of Hosts": [("Host", f"{own}, evil.example")],
        "null Origin": [("Origin", "null")],
        "evil Origin": [("Origin", EVIL)],
        "an Origin that begins as ours": [("Origin", f"http://{own}.evil.example")],
        "another port's Origin": [("Origin", "http://127.0.0.1:1")],
        "two Origins": [("Origin", f"http://{own}"), ("Origin", EVIL)],
        "our Origin twice": [("Origin", f"http://{own}"), ("Origin", f"http://{own}")],
        "an empty Origin": [("Origin", "")],
        "cross-site": [("Sec-Fetch-Site", "cross-site")],
        "same-site": [("Sec-Fetch-Site", "same-site")],
        "cross-site with our Origin": [("Origin", f"http://{own}"), ("Sec-Fetch-Site", "cross-site")],
        "two sites": [("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "cross-site")],
        "a site that is none": [("Sec-Fetch-Site", "friendly")],
    }


def ours(own: str) -> dict[str, list[Header]]:
    return {
        "none": [],
        "by name": [("Host", "localhost:1")],
        "our Origin": [("Origin", f"http://{own}")],
        "same-origin": [("Origin", f"http://{own}"), ("Sec-Fetch-Site", "same-origin")],
        "typed": [("Sec-Fetch-Site", "none"), ("Sec-Fetch-Mode", "navigate")],
    }


def every(server, path: str, method: str, headers):
    content = json.dumps(BODIES.get(path, {})).encode() if method in ("POST", "PUT", "PATCH") else b""
    kind = [("Content-Type", "application/json")] if content else []
    return ask(server, method, path, [*headers, *kind], content)


def test_s14_w2_pages_of_other_sites_are_refused_on_every_route_by_every_method(server, evidence):
    own = f"127.0.0.1:{server.port}"
    asked = Counter[str]()
    for path in PATHS:
        for method in METHODS:
            for name, headers in foreign(own).items():
                answer = every(server, path, method, headers)
                malformed = name in ("no Host", "two Hosts")
                assert answer.status == (400 if malformed else 403), (path, method, name)
                assert method == "HEAD" or answer.code == ("E410" if malformed else "E417")
                assert not any(header.startswith("access-control") for header in answer.headers)
                asked["foreign"] += 1
    evidence("S14", "W2", claim="requests of foreign pages and names, 2xx", figure=f"{asked['foreign']:,}, 0")


def test_s14_w2_the_servers_own_pages_and_programs_may_ask(server):
    own = f"127.0.0.1:{server.port}"
    served = Counter[str]()
    for path in PATHS:
        takes = {"POST"} if path in BODIES else {"GET", "HEAD"}
        exists = path not in ("/nothing", "/")
        for method in METHODS:
            for headers in ours(own).values():
                status = every(server, path, method, headers).status
                if method == "CONNECT":
                    assert status >= 400
                elif not exists:
                    assert status == 404
                elif method not in takes:
                    assert status == 405
                elif path in ("/v1/embeddings", "/v1/score"):
                    assert status == 400  # of a model that gives text
                else:
                    assert status == 200
                    served[path] += 1
    assert len(served) == 6


@pytest.fixture
def trap():
    """A port that nobody has a reason to connect to; who does is counted."""
    found: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        ended = threading.Event()

        def accept() -> None:
            while not ended.is_set():
                try:
                    found.append(listening.accept())
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        yield listening.getsockname()[1], found
        ended.set()
        thread.join()


def urls(port: int, canary: str) -> list[str]:
    web = [f"{scheme}://127.0.0.1:{port}/x" for scheme in ("http", "https", "ftp", "gopher", "ws", "HTTP", "s3", "hf")]
    files = [f"file://{canary}", f"FILE:{canary}", f"file://localhost{canary}", canary, f"~/../..{canary}"]
    return [
        *web,
        *files,
        f"//127.0.0.1:{port}/x",
        f"\\\\127.0.0.1@{port}\\x",
        "http://169.254.169.254/latest/meta-data/",
    ]


def naming(url: str) -> list[tuple[str, dict]]:
    """Requests with this URL wherever one might be looked for."""
    chat = BODIES["/v1/chat/completions"]
    schema = {"type": "object", "properties": {"a": {"$ref": url}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    held = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$schema": url, "$id": url, "type": "null"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, "description": url}}
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": url},
        {"type": "input_image", "image_url": url},
        {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "file", "file": {"file_url": url, "file_data": url, "file_id": url}},
        {"type": "text", "text": url},
    ]
    chats = [
        *({"messages": [{"role": "user", "content": [part]}]} for part in parts),
        {"messages": [{"role": "user", "content": f"Read ![x]({url}) <img src='{url}'>"}]},
        {"messages": [{"role": "tool", "content": url, "tool_call_id": url}]},
        {"response_format": form},
        {"response_format": held},
        {"tools": [tool], "tool_choice": "required"},
        {"model": url},
        {"metadata": {"url": url}, "user": url},
        {"web_search_options": {"url": url}},
        {"chat_template": url},
        {"stop": url},
    ]
    others = [
        ("/v1/completions", {"prompt": url}),
        ("/v1/completions", {"prompt": "a", "suffix": url}),
        ("/v1/completions", {"model": url}),
        ("/v1/embeddings", {"input": {"image": url}}),
        ("/v1/embeddings", {"model": url}),
        ("/v1/score", {"input": [{"prompt": [{"role": "user", "content": url}], "answer": url}]}),
    ]
    return [*(("/v1/chat/completions", {**chat, **each}) for each in chats),
            *((path, {**BODIES[path], **each}) for path, each in others)]  # fmt: skip


SECRET = "canary-5f1e0c"


@pytest.mark.row("S4")
def test_s4_nothing_that_a_request_names_is_fetched(server, trap, tmp_path, evidence):
    port, came = trap
    canary = tmp_path / "canary-of-urls.txt"
    canary.write_text(SECRET)
    count = 0
    with watching() as seen:
        for url in urls(port, str(canary)):
            for path, content in naming(url):
                answer = post(server, path, content)
                told = answer.body.decode()
                assert answer.status in (200, 400, 404), (answer.status, content)
                assert SECRET not in told
                refused = "image_url" in str(content) or content["model"] == url or '"$ref"' in json.dumps(content)
                assert answer.status != 200 or not refused, content
                count += 1
    assert came == []
    assert seen.beyond(server.port) == []
    assert seen.opened(["canary-of-urls", "169.254"]) == []
    evidence("S4", claim="URLs in every field: connections, files opened", figure=f"{count} requests: 0, 0")


def test_the_trap_and_the_watch_would_tell(trap, tmp_path):
    port, came = trap
    (tmp_path / "canary-of-urls.txt").write_text("x")
    with watching() as seen:
        socket.create_connection(("127.0.0.1", port)).close()
        (tmp_path / "canary-of-urls.txt").read_text()
    eventually(lambda: len(came) == 1)
    assert seen.beyond(1) == [str(port)]
    assert len(seen.opened(["canary-of-urls"])) == 1


def traversals(canary: str) -> list[str]:
    """Ways to write a path that leaves its folder."""
    name = canary.rsplit("/", 1)[1]
    up = "../" * 12
    bare = [
        canary,
        f"/{canary}",
        f"{up}{canary[1:]}",
        f"../{name}",
        f"tiny/../{name}",
        f"tiny/../../{name}",
        f"./../{name}",
    ]
    slashes = ["%2f", "%2F", "%252f", "%c0%af", "%u2215", "\\", "%5c", "%255c", "\u2215", "\uff0f", "/./", "//"]
    dots = [
        "%2e%2e",
        "%252e%252e",
        ".%2e",
        "%c0%ae%c0%ae",
        "\uff0e\uff0e",
        "....",
        "..;",
        "..%00",
        "..%20",
        "%uff0e%uff0e",
    ]
    found = [*bare, *(f"..{slash}{name}" for slash in slashes), *(f"tiny{slash}..{slash}{name}" for slash in slashes)]
    found += [*(f"{dot}/{name}" for dot in dots), *(f"tiny/{dot}/{dot}/{name}" for dot in dots)]
    found += [
        f"file://{canary}",
        f"{canary}\x00",
        f"{canary}%00.json",
        f"tiny\x00/../{name}",
        f"~/{name}",
        f"${{PWD}}/{name}",
    ]
    found += [
        f"C:\\{name}",
        f"\\\\localhost\\c$\\{name}",
        f"tiny:{canary}",
        f"tiny={canary}",
        f"{canary}#tiny",
        f"tiny?x={canary}",
    ]
    return list(dict.fromkeys(found))


def test_s16_w4_no_path_that_a_request_names_is_opened(tmp_path, evidence):
    (tmp_path / "models").mkdir()
    canary = tmp_path / "models" / "canary-of-paths.txt"
    canary.write_text(SECRET)
    corpus = traversals(str(canary))
    assert len(corpus) >= 60
    fields = ("adapter", "adapters", "lora", "lora_path", "file", "file_id", "path", "template", "chat_template", "dir")
    count, statuses = 0, Counter[int]()
    with serving({"tiny": tiny_model_folder(tmp_path / "models" / "tiny")}) as running, watching() as seen:

        def check(answer, *, name: bool = True) -> None:
            nonlocal count
            count += 1
            statuses[answer.status] += 1
            assert SECRET.encode() not in answer.body
            assert not name or 400 <= answer.status < 500

        for text in corpus:
            for shown in (quote(text, safe="/%:=\\~.;$#?"), quote(text, safe="")):
                raw = shown.replace("#", "%23").replace("?", "%3F")
                check(ask(running, "GET", f"/v1/models/{raw}"))
                check(ask(running, "GET", f"/v1/{raw}"))
                check(ask(running, "GET", f"/{raw}"))
                check(ask(running, "GET", f"/health?file={raw}&model={raw}"), name=False)
                check(ask(running, "GET", f"/v1/models/{raw}?model=tiny"))
            for path, content in BODIES.items():
                check(post(running, path, {**content, "model": text}))
            for each in fields:
                check(post(running, "/v1/completions", {**BODIES["/v1/completions"], each: text}))
            served = {**BODIES["/v1/completions"], "prompt": text, "user": text, "stop": text[:100]}
            check(post(running, "/v1/completions", served), name=False)
            answer = ask(running, "GET", "/v1/models", [("X-Model", quote(text)), ("Referer", quote(text))])
            check(answer, name=False)
    assert seen.opened(["canary-of-paths", "etc/passwd"]) == []
    assert statuses.keys() <= {200, 400, 404}
    claim = f"{len(corpus)} ways to write a path in every field: bytes of the canary, times it was opened"
    evidence("S16", "W4", claim=claim, figure=f"{count:,} requests: 0, 0")


LONG = Limits().header_bytes - 2000
COSTLY = {
    "Range": [
        "bytes=" + "0-," * (LONG // 3),
        "bytes=" + "-" * LONG,
        "bytes=" + "0" * LONG,
        "bytes=" + " ," * (LONG // 2),
    ],
    "Content-Type": [
        "multipart/form-data; boundary=" + "a" * LONG,
        "multipart/form-data" + "; a" * (LONG // 3),
        "application/json" + " ;" * (LONG // 2),
        "application/json; a=" + '"\\' * (LONG // 2),
    ],
    "Accept": ["*/*;q=0.1," * (LONG // 10)],
    "Accept-Encoding": ["gzip," * (LONG // 5)],
    "Authorization": ["Bearer " + " " * LONG, "Basic " + "=" * LONG],
    "Cookie": ["a=b;" * (LONG // 4), '"' * LONG],
    "If-None-Match": ['W/"' * (LONG // 3)],
    "Forwarded": ['for="' * (LONG // 5)],
    "Origin": ["http://" + "a." * (LONG // 2), "http://" * (LONG // 7)],
    "Host": ["a." * (LONG // 2), "[" + ":" * LONG, "localhost:" + "0" * LONG, "localhost" + " " * LONG],
    "Sec-Fetch-Site": ["same-origin," * (LONG // 12)],
    "Expect": ["100-continue," * (LONG // 13)],
}


@pytest.mark.row("S18")
@pytest.mark.parametrize("name", COSTLY)
def test_s18_no_header_costs_more_than_its_length(server, name):
    body = json.dumps({**BODIES["/v1/embeddings"], "model": "none"}).encode()  # read, and nothing decoded
    kind = [] if name == "Content-Type" else [("Content-Type", "application/json")]
    for value in COSTLY[name]:
        for method, path in (("GET", "/health"), ("GET", "/v1/models"), ("POST", "/v1/embeddings")):
            found = []
            content = body if method == "POST" else b""

            def work() -> None:
                found.append(ask(server, method, path, [(name, value), *kind], content).status)  # noqa: B023

            assert processor_seconds(work) < 0.05, (name, value[:30], path)
            assert set(found) <= {200, 400, 403, 404, 415}, (name, value[:30])
            assert 206 not in found


def test_s18_bodies_of_parts_are_refused_before_they_are_read(server, evidence):
    part = b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n\r\n'
    bodies = [
        part * 60_000,
        b"--x" * 1_300_000,
        b"\r\n" * 2_000_000,
        b"--x\r\n" + b"a:b\r\n" * 800_000,
        b"-" * 4_000_000,
    ]
    worst = 0.0
    for body in bodies:
        assert len(body) < Limits().body_bytes
        for kind in (
            "multipart/form-data; boundary=x",
            "multipart/mixed; boundary=x",
            "application/x-www-form-urlencoded",
        ):
            for path in BODIES:
                found = []

                def work() -> None:
                    found.append(ask(server, "POST", path, [("Content-Type", kind)], body).status)  # noqa: B023

                worst = max(worst, processor_seconds(work, 1))
                assert found == [415]
    assert worst < 0.25
    evidence("S18", claim="multipart bodies of 4 MB: 415, worst processor time", figure=f"{worst * 1000:.0f} ms")
