"""A killed run goes on although its data was named by a path that begins at the working directory."""

import os
import signal
import subprocess
import sys

from tests.records import write_records
from tests.tiny import tiny_model_folder


def command(folder, *words, fault=""):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TUNESMITH_HOME": str(folder / "home"),
        "TUNESMITH_FAULT": fault,
    }
    start = [sys.executable, "-m", "tunesmith", *words]
    return subprocess.run(start, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_a_killed_run_with_relative_paths_resumes(tmp_path):
    tiny_model_folder(tmp_path / "model")
    (tmp_path / "work").mkdir()
    write_records(tmp_path / "work" / "sequence.jsonl", "sequence", 12)
    write_records(tmp_path / "work" / "held_out.jsonl", "sequence", 3, seed=1)
    settings = [
        "model.path=model", "data.train=work/sequence.jsonl", "data.eval=work/held_out.jsonl", "data.max_length=96",
        "train.steps=3", "train.sequences_per_step=4", "train.checkpoint.every=1", "train.threads=1", "run.name=r",
    ]  # fmt: skip
    killed = command(tmp_path, "train", "sft", *settings, "--yes", fault="train.step@step=2:kill")
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    resumed = command(tmp_path, "runs", "resume", "r")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
