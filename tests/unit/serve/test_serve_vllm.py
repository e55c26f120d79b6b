"""vLLM behind our gate, up to the border of the program: what it is started with, and what becomes of its answers.

A program of the same name stands in its place, which answers with what it was asked. vLLM itself is not run.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx
import openai
import pytest
from tests.tiny import CHATML, tiny_model_folder
from tests.unit.export.test_averaging import saved
from tests.unit.serve.running import HELLO, eventually
from tests.unit.serve.test_serve_tools import TEMPLATES

from tunesmith.errors import MachineError, ModelError, TunesmithError
from tunesmith.export.opening import find_model
from tunesmith.models.config import DoraConfig, LoraConfig
from tunesmith.serve import vllm
from tunesmith.serve.server import Server, listen
from tunesmith.serve.settings import Limits, Settings
from tunesmith.serve.vllm import VllmHouse, arguments, check_sources, parser_of, program

PROGRAM = """#!{python}
import http.server, json, os, sys, time
port = int(sys.argv[sys.argv.index("--port") + 1])
print("a line of its own", flush=True)
if "die" in os.environ.get("FAKE", ""): sys.exit(3)
if "load" in os.environ.get("FAKE", ""):
    with open(os.environ["LEFT"], "w") as file: file.write(str(os.getpid()))
    time.sleep(600)
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *given): pass
    def do_GET(self): self.send(200, {{}})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if asked.get("seed") == 13: os._exit(1)
        if self.headers["authorization"] != "Bearer " + os.environ["VLLM_API_KEY"]: return self.send(401, {{}})
        if asked.get("seed") == 14:
            self.connection.recv(1)  # returns when the other side hangs up
            open(os.environ["LEFT"], "w").close(); self.close_connection = True; return
        if asked.get("stream"):
            self.send_response(200); self.send_header("content-type", "text/event-stream"); self.end_headers()
            try:
                for number in range(asked["max_tokens"]):
                    self.wfile.write(b'data: {{"choices": [{{"index": 0, "delta": {{"content": "w"}}}}]}}\\n\\n')
                    self.wfile.flush(); time.sleep(0.02)
                self.wfile.write(b"data: [DONE]\\n\\n")
            except OSError: open(os.environ["LEFT"], "w").close()
            self.close_connection = True; return
        said = json.dumps({{"asked": asked, "argv": sys.argv[1:], "path": self.path, "pid": os.getpid()}})
        self.send(200, {{"id": "x", "choices": [{{"index": 0, "message": {{"role": "assistant", "content": said}}}}]}})
    def send(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status); self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text))); self.end_headers(); self.wfile.write(text)
http.server.ThreadingHTTPServer((sys.argv[sys.argv.index("--host") + 1], port), Answer).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    path = folder / "vllm"
    path.write_text(PROGRAM.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("LEFT", str(tmp_path / "left"))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("vllm") / "base", tie_word_embeddings=False)


@contextmanager
def behind_the_gate(named, settings: Settings):
    house = VllmHouse(named, settings.limits)
    server, listening = Server(house, settings), listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_on, args=(listening,))
    thread.start()
    eventually(lambda: server.started)
    try:
        yield house, f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
    assert not house.child.runs


def test_without_the_program_the_command_that_brings_it_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match=r"E427.*not installed") as caught:
        program()
    assert next(fix.command for fix in caught.value.diagnostic.fixes) == "pip install vllm"


def test_the_program_is_started_on_loopback_with_our_limits(base, tmp_path):
    adapters = {
        name: str(saved(base, tmp_path / name, LoraConfig(rank=rank), 1)) for name, rank in (("a", 4), ("b", 12))
    }
    sources = {name: find_model(model) for name, model in {"plain": str(base), **adapters}.items()}
    given = arguments(sources, Limits(batch_size=7, dtype="bfloat16"), 4321)
    told = dict(zip(given[2::2], given[3::2], strict=False))
    assert given[:2] == ["serve", str(base.resolve())]
    assert (told["--host"], told["--port"], told["--dtype"]) == ("127.0.0.1", "4321", "bfloat16")
    assert (told["--served-model-name"], told["--max-num-seqs"]) == ("plain", "7")
    assert given[given.index("--max-lora-rank") + 1] == "16"
    assert given[given.index("--lora-modules") + 1 :][:2] == [f"a={adapters['a']}", f"b={adapters['b']}"]
    assert not [word for word in given if "trust" in word or "key" in word]
    alone = arguments({"a": sources["a"]}, Limits(), 1)
    assert alone[alone.index("--served-model-name") + 1].startswith("base-")  # nobody asks for it by name


@pytest.mark.parametrize(
    ("style", "parser"), zip(TEMPLATES, ["hermes", "mistral", "mistral", "llama3_json", None], strict=True)
)
def test_the_form_of_calls_is_told_by_its_name(tmp_path, style, parser):
    folder = tiny_model_folder(tmp_path / "m", template=TEMPLATES[style])
    assert parser_of(folder) == parser
    for template in (CHATML, None):
        assert parser_of(tiny_model_folder(tmp_path / f"n{template is None}", template=template)) is None


def test_what_it_cannot_take_is_refused_before_it_starts(base, tmp_path):
    other = tiny_model_folder(tmp_path / "other")
    dora = str(saved(base, tmp_path / "dora", DoraConfig(rank=4), 1))
    with pytest.raises(ModelError, match="more than one base"):
        check_sources({name: find_model(str(name)) for name in (base, other)})
    with pytest.raises(ModelError, match=r"E427.*not plain LoRA") as caught:
        check_sources({"d": find_model(dora)})
    assert "tunesmith export" in caught.value.diagnostic.fixes[0].label


def test_requests_go_through_our_gate_to_the_child_and_back(stand_in, base):
    limits = Limits(batch_size=2, queue=0, new_tokens=99)
    with behind_the_gate({"m": str(base)}, Settings(token="t", limits=limits)) as (house, address):
        assert httpx.get(f"{address}/v1/models").status_code == 401
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="t", max_retries=0)
        assert [model.id for model in client.models.list()] == ["m"]
        answer = client.chat.completions.create(model="m", messages=HELLO, extra_body={"top_k": 3})
        said = json.loads(answer.choices[0].message.content)
        assert said["asked"] == {"model": "m", "messages": HELLO, "top_k": 3, "max_tokens": 99}
        assert said["path"] == "/v1/chat/completions"
        assert house.key not in " ".join(said["argv"])
        chunks = list(client.chat.completions.create(model="m", messages=HELLO, stream=True, max_tokens=3))
        assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "www"
        for change, code in (({"model": "x"}, "E412"), ({"n": 3}, "E411"), ({"temperatur": 1}, "E411")):
            asked = {"model": "m", "messages": HELLO, **change}
            refused = httpx.post(f"{address}/v1/chat/completions", json=asked, headers={"Authorization": "Bearer t"})
            assert refused.json()["error"]["code"] == code
        held = [client.chat.completions.create(model="m", messages=HELLO, stream=True, max_tokens=500) for _ in "ab"]
        with pytest.raises(openai.RateLimitError, match="wait already"):
            client.chat.completions.create(model="m", messages=HELLO)
        for stream in held:
            next(iter(stream))
            stream.close()
        eventually(lambda: house.under_way == 0)
        eventually(lambda: os.path.exists(os.environ["LEFT"]))  # the child heard that they left


def test_a_client_that_leaves_before_its_answer_ends_it_in_the_child(stand_in, base):
    with behind_the_gate({"m": str(base)}, Settings()) as (house, address):
        asked = {"model": "m", "messages": HELLO, "seed": 14}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/chat/completions", json=asked, timeout=0.5)
        eventually(lambda: os.path.exists(os.environ["LEFT"]))
        eventually(lambda: house.under_way == 0)


def test_a_child_that_ends_is_told_with_what_it_said(stand_in, base, monkeypatch):
    with behind_the_gate({"m": str(base)}, Settings()) as (house, address):
        assert httpx.get(f"{address}/health").status_code == 200
        asked = {"model": "m", "messages": HELLO, "seed": 13}
        for _ in range(2):
            answer = httpx.post(f"{address}/v1/chat/completions", json=asked)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "E488")
            assert answer.json()["error"]["evidence"] == ["a line of its own"]
        eventually(lambda: httpx.get(f"{address}/health").status_code == 503)
        assert house.under_way == 0
    monkeypatch.setenv("FAKE", "die")
    with pytest.raises(MachineError, match=r"E488.*status 3") as caught:
        VllmHouse({"m": str(base)}, Limits())
    assert list(caught.value.diagnostic.evidence) == ["a line of its own"]


def test_a_child_that_never_answers_is_ended(stand_in, base, monkeypatch):
    stand_in.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    monkeypatch.setattr(vllm, "START", 0.3)
    began = time.monotonic()
    with pytest.raises(TunesmithError, match="did not answer within"):
        VllmHouse({"m": str(base)}, Limits())
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_is_ended_while_its_child_loads_takes_the_child_along(stand_in, base, tmp_path, number):
    start = "import sys; from tunesmith.serve.settings import Limits; from tunesmith.serve.vllm import VllmHouse\n"
    start += "VllmHouse({'m': sys.argv[1]}, Limits())"
    server = subprocess.Popen([sys.executable, "-c", start, str(base)], env={**os.environ, "FAKE": "load"})
    left = tmp_path / "left"
    eventually(lambda: left.exists() and left.read_text() != "", seconds=60)
    child = int(left.read_text())
    assert is_running(child)
    server.send_signal(number)
    assert server.wait(30) == (128 + number if number == signal.SIGTERM else -number)
    eventually(lambda: not is_running(child), seconds=5)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
