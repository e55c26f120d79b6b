"""`tunesmith serve` as a process, and what it refuses before it loads anything."""

import os
import re
import signal
import subprocess
import sys
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
