"""`tunesmith doctor --chaos` breaks what it says it breaks, and tells when a promise does not hold."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tunesmith import chaos
from tunesmith.train.checkpoint import CheckpointStore


def saved(folder, steps):
    store = CheckpointStore(folder / "killed" / "checkpoints", keep=3)
    for step in steps:
        store.save(step, {"weights": {"weight": torch.ones(8)}}, {"step": step})
    return store


COUNTED = "200 of 200 found, named, and the one before taken; no false alarm"


@pytest.mark.parametrize("falls_back", [True, False])
def test_changed_bits_are_counted_and_the_run_itself_must_fall_back(tmp_path, monkeypatch, falls_back):
    saved(tmp_path, (2, 4))
    monkeypatch.setattr(chaos, "goes_back", lambda folder, newest, older: falls_back and older == 2)
    trial = chaos.corruptions(tmp_path)
    assert trial.held is falls_back
    assert trial.found.startswith(COUNTED)
    assert ("does not fall back" in trial.found) is not falls_back


@pytest.mark.row("N1")
def test_evidence_that_is_not_there_is_no_success(tmp_path, monkeypatch):
    monkeypatch.setattr(chaos, "train", lambda *_: 0)
    monkeypatch.setattr(chaos, "events", lambda *_: [{"action": "skip"}])
    assert not chaos.not_a_number(tmp_path).held
    (tmp_path / "nan" / "bad_batches").mkdir(parents=True)
    (tmp_path / "nan" / "bad_batches" / "step-3.json").write_text('{"records": ["a:1", "a:2"]}')
    trial = chaos.not_a_number(tmp_path)
    assert trial.held
    assert "2 records in bad_batches" in trial.found


@pytest.mark.nightly
@pytest.mark.row("R6")
@pytest.mark.timeout(600)
def test_a_run_falls_back_says_so_and_ends_the_same(tmp_path):
    chaos.prepare(tmp_path)
    assert [chaos.train(tmp_path, name) for name in ("whole", "killed")] == [0, 0]
    store = CheckpointStore(tmp_path / "killed" / "checkpoints")
    newest, older = store.steps()[:2]
    assert chaos.goes_back(tmp_path, store.folder / f"step-{newest}", older)
    assert not chaos.goes_back(tmp_path, store.folder / f"step-{newest}", older - 1), "another step is not what it said"


def test_a_checkpoint_to_fall_back_to_that_is_damaged_is_no_success(tmp_path, monkeypatch):
    store = saved(tmp_path, (1, 2, 4))
    (store.folder / "step-2" / "state.json").write_text("{}")
    monkeypatch.setattr(chaos, "goes_back", lambda *_: True)
    assert not chaos.corruptions(tmp_path).held


@pytest.mark.nightly
@pytest.mark.row("R1", "R6", "R9", "P8", "N1")
@pytest.mark.timeout(900)
def test_every_trial_holds():
    command = [sys.executable, "-m", "tunesmith", "doctor", "--chaos", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=880, env=dict(os.environ))
    told = json.loads(done.stdout)
    assert (done.returncode, told["ok"], len(told["trials"])) == (0, True, 5), told
