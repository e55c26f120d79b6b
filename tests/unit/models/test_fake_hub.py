"""F17: a hub that refuses, is busy, is silent or breaks off, played by a server of our own on the loopback."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
import pytest
from safetensors.numpy import save as to_bytes

TOKEN = "hf_" + "canary" * 5
COMMIT = "c" * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    # more than twice the pieces of 10 MB in which the client writes
    "model.safetensors": to_bytes({"a": np.zeros(6_000_000, np.float32)}),
}
ASK = """
import sys
from tunesmith.errors import TunesmithError
from tunesmith.models.locate import locate
for name in sys.argv[1:]:
    try:
        found = locate(name)
        print(name, 0, "ok", found, sep="|", flush=True)
    except TunesmithError as error:
        print(name, error.exit_code, error.diagnostic.code, " ".join(str(error).split()), sep="|", flush=True)
"""


class Hub(BaseHTTPRequestHandler):
    """What is asked of `owner/WORD` decides how it goes."""

    protocol_version = "HTTP/1.1"
    seen: Counter[str] = Counter()  # noqa: RUF012
    silence = threading.Event()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path)
        word = path.split("owner/")[-1].split("/")[0]
        Hub.seen[word] += 1
        if word == "secret":
            self.say(401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid username or password."})
        elif word == "gated":
            self.say(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "accept the terms"})
        elif word == "absent":
            self.say(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif word == "busy" and Hub.seen[word] <= 2:
            self.say(429, b"{}", {"Retry-After": "0"})
        elif word == "silent":
            Hub.silence.wait(60)
            self.close_connection = True
        elif word == "odd":
            self.say(200, b'{"id": 7, "siblings": "none"}')
        elif "/tree/" in path:
            tree = [{"type": "file", "path": name, "size": len(FILES[name]), "oid": "0" * 40} for name in FILES]
            self.say(200, json.dumps(tree).encode())
        elif "/api/models/" in path:
            siblings = [{"rfilename": name} for name in FILES]
            self.say(200, json.dumps({"id": f"owner/{word}", "sha": COMMIT, "siblings": siblings}).encode())
        else:
            self.give(word, path.rpartition("/")[2])

    def give(self, word: str, name: str) -> None:
        content = FILES[name]
        begin = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0] or 0)
        headers = {"ETag": f'"{name}{len(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if begin:
            Hub.seen[f"{word} resumed"] += 1
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        Hub.seen[f"{word} {self.command} {name}"] += 1
        breaks = word == "cut" and self.command == "GET" and Hub.seen[f"{word} GET {name}"] == 1
        self.say(206 if begin else 200, content[begin:], headers, half=breaks and name == "model.safetensors")

    def say(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, half: bool = False) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if half else body)
        self.close_connection = half

    def log_message(self, *given: object) -> None:
        pass


@pytest.fixture
def hub():
    Hub.seen.clear()
    Hub.silence.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    Hub.silence.set()
    server.shutdown()
    thread.join(30)
    server.server_close()


def test_f17_every_refusal_of_the_hub_has_its_own_words_and_downloads_go_on(hub, tmp_path):
    times = {"HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DOWNLOAD_TIMEOUT": "2", "HF_HUB_DISABLE_XET": "1"}
    environment = {**os.environ, **times, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN}
    environment.pop("HF_HUB_OFFLINE", None)
    names = [f"owner/{word}" for word in ("fine", "secret", "gated", "absent", "silent", "busy", "cut", "odd")]
    done = subprocess.run(
        [sys.executable, "-c", ASK, *names], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    told = {line.split("|")[0].removeprefix("owner/"): line.split("|", 3)[1:] for line in done.stdout.splitlines()}
    assert told.keys() == {name.removeprefix("owner/") for name in names}, done.stderr
    assert told["fine"][:2] == told["cut"][:2] == told["busy"][:2] == ["0", "ok"], told
    assert {word: told[word][:2] for word in ("secret", "gated", "absent", "silent", "odd")} == {
        "secret": ["4", "E086"],
        "gated": ["4", "E086"],
        "absent": ["4", "E086"],
        "silent": ["5", "E087"],
        "odd": ["5", "E087"],
    }
    assert "terms" in told["gated"][2]
    assert "knows no model" in told["absent"][2]
    assert "connect to the network" in told["silent"][2]
    assert Hub.seen["busy"] > 2, "it was tried again"
    assert Hub.seen["cut resumed"] >= 1, "the second half alone was fetched"
    weights = next((tmp_path / "hub").glob("models--owner--cut/snapshots/*/model.safetensors"))
    assert weights.read_bytes() == FILES["model.safetensors"]
    assert TOKEN not in done.stdout + done.stderr
