"""`tunesmith lr-find` on a tiny model: one suggestion, nothing left behind, and what it refuses."""

import json
import os
import signal

import pytest
from tests.tiny import tiny_model_folder
from tests.unit.test_run import write_data

from tunesmith.cli.main import run
from tunesmith.running import rates


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def words(tmp_path, *more: str) -> list[str]:
    model, data = tiny_model_folder(tmp_path / "m"), write_data(tmp_path / "d.jsonl")
    return ["lr-find", "sft", f"model.path={model}", f"data.train={data}", "train.sequences_per_step=4", *more]


def call(given: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        run(given)
    return int(ended.value.code or 0)


def test_a_rate_is_suggested_and_nothing_is_kept(tmp_path, capsys):
    assert call(words(tmp_path, "--steps", "60", "--from", "1e-5", "--to", "1", "--json")) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 1e-5 <= told["suggested"] < told["lowest"] <= 1
    assert len(told["rates"]) <= 60
    assert told["rates"] == sorted(told["rates"])
    assert told["rates"][0] == pytest.approx(1e-5)
    assert not (tmp_path / "runs").exists()


def test_the_curve_and_the_setting_are_shown(tmp_path, capsys):
    assert call(words(tmp_path, "--steps", "60", "--from", "1e-5", "--to", "1")) == 0
    shown = capsys.readouterr().out
    assert "train.optimizer.lr=" in shown
    assert "falls fastest at" in shown


def test_a_range_that_goes_down_is_refused(tmp_path, capsys):
    assert call(words(tmp_path, "--from", "1e-3", "--to", "1e-4")) == 2
    assert "error[E341]" in capsys.readouterr().err


def test_a_signal_ends_the_search_without_a_word_of_a_checkpoint(tmp_path, capfd, monkeypatch):
    built = rates.build_loop

    def build(*given, **named):
        os.kill(os.getpid(), signal.SIGTERM)
        return built(*given, **named)

    monkeypatch.setattr(rates, "build_loop", build)
    assert call(words(tmp_path, "--steps", "60")) == 75
    told = capfd.readouterr().err
    assert "error[E380]" in told
    assert "after 1 steps" in told
    assert "saving" not in told
    assert "saved" not in told
    assert not (tmp_path / "runs").exists()
