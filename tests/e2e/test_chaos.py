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


def test_changed_bits_are_counted_and_the_good_one_raises_no_alarm(tmp_path):
    saved(tmp_path, (2, 4))
    trial = chaos.corruptions(tmp_path)
    assert trial.held
    assert trial.found == "200 of 200 found, named, and the one before taken; no false alarm"


def test_a_checkpoint_to_fall_back_to_that_is_damaged_is_no_success(tmp_path):
    store = saved(tmp_path, (1, 2, 4))
    (store.folder / "step-2" / "state.json").write_text("{}")
    assert not chaos.corruptions(tmp_path).held


@pytest.mark.nightly
@pytest.mark.row("R1", "R6", "R9", "P8", "N1")
@pytest.mark.timeout(900)
def test_every_trial_holds():
    command = [sys.executable, "-m", "tunesmith", "doctor", "--chaos", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=880, env=dict(os.environ))
    told = json.loads(done.stdout)
    assert (done.returncode, told["ok"], len(told["trials"])) == (0, True, 5), told
