"""`tunesmith serve` as a process, and what it refuses before it loads anything."""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec

import httpx
import pytest
from tests.command import call
from tests.tiny import tiny_model_folder

from tunesmith.cli import serve


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_end(tmp_path, number):
    folder = tiny_model_folder(tmp_path / "tiny")
    (tmp_path / "token").write_text("secret\n")
    words = ["serve", f"small={folder}", "--port", "0", "--token-file", str(tmp_path / "token")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "300"}
    program = [sys.executable, "-m", "tunesmith", *words]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        line = next(text for text in process.stderr if "serving" in text)
        found = re.search(r"serving small at (http://127\.0\.0\.1:\d+)/v1, with a token", line)
        assert found is not None, line
        assert httpx.get(f"{found[1]}/v1/models").status_code == 401
        headers = {"Authorization": "Bearer secret"}
        body = {"model": "small", "prompt": "Hi", "max_tokens": 3}
        answer = httpx.post(f"{found[1]}/v1/completions", json=body, headers=headers, timeout=60)
        assert answer.status_code == 200
        process.send_signal(number)
        assert process.wait(30) == 0


@contextmanager
def started(words: list[str], environment: dict[str, str]):
    """The process, and the address that it tells."""
    program = [sys.executable, "-m", "tunesmith", "serve", *words]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if found := re.search(r"serving \w+ at (http://\S+)/v1", line):
                    yield process, found[1]
                    return
            raise AssertionError("".join(said))
        finally:
            process.kill()


def test_w12_w16_it_serves_on_ipv6_without_a_home_and_again_after_it_was_killed(tmp_path, evidence):
    folder = tiny_model_folder(tmp_path / "tiny")
    kept = {
        name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    }
    environment = {**kept, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "300", "HOME": "/nonexistent/home"}
    port, answers = "0", []
    for home in (environment, {name: value for name, value in environment.items() if name != "HOME"}):
        with started([f"small={folder}", "--host", "::1", "--port", port], home) as (process, address):
            assert re.fullmatch(r"http://\[::1\]:\d+", address)
            assert port in ("0", address.rsplit(":", 1)[1])
            port = address.rsplit(":", 1)[1]
            body = {"model": "small", "prompt": "Hi", "max_tokens": 400, "ignore_eos": True, "temperature": 0}
            answers.append(httpx.post(f"{address}/v1/completions", json=body, timeout=60).json()["choices"])
            with httpx.stream("POST", f"{address}/v1/completions", json={**body, "stream": True}) as stream:
                assert stream.status_code == 200
                process.kill()
                assert process.wait(30) == -signal.SIGKILL
                with pytest.raises(httpx.TransportError):
                    list(stream.iter_bytes())
            with pytest.raises(OSError, match="refused"):
                socket.create_connection(("::1", int(port)))
    assert answers[0] == answers[1]
    evidence("W12", claim="killed within a stream and started again on its port: same answers", figure="1 of 1")


def test_what_is_wrong_is_told_before_a_model_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv(serve.TOKEN, raising=False)
    assert call("serve", "nowhere", "--host", "192.168.0.2") == 9
    assert "E421" in capsys.readouterr().err
    assert call("serve", "a=x", "a=y") == 2
    assert "E020" in capsys.readouterr().err
    (tmp_path / "empty").write_text("\n")
    assert call("serve", "nowhere", "--token-file", str(tmp_path / "empty")) == 2
    assert "E416" in capsys.readouterr().err
    assert call("serve", "nowhere", "--token-file", str(tmp_path / "missing")) == 2
    assert "E416" in capsys.readouterr().err


def test_another_backend_is_told_apart_before_it_is_looked_for(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert call("serve", "nowhere", "--backend", "vllm") == 5
    assert "pip install vllm" in capsys.readouterr().err
    for option, word in (("--backend", "other"), ("--products", "int4"), ("--dtype", "float8")):
        assert call("serve", "nowhere", option, word) == 2
        assert option in capsys.readouterr().err


def test_a_missing_package_is_told_with_its_command(capsys, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "uvicorn" else find_spec(name))
    assert call("serve", "nowhere") == 5
    assert "pip install 'tunesmith[serve]'" in capsys.readouterr().err


def test_the_token_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv(serve.TOKEN, " secret ")
    assert serve.read_token(None) == "secret"
    monkeypatch.setenv(serve.TOKEN, "")
    assert serve.read_token(None) is None
