"""Trainings that are killed and resumed become, to the bit, what they would have become."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_harness(name: str, *words: object, timeout: float = 280) -> dict:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"tests.e2e.{name}", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    print(json.dumps(report))
    assert report["problems"] == []
    return report


def test_r02_ten_kills(tmp_path):
    report = run_harness("kill_harness", tmp_path, 10)
    assert report["kills"] == 10
    assert report["finished"] >= 1
    assert len(report["phases"]) >= 3
    assert report["later_epoch"] >= 1


@pytest.mark.parametrize("objective", ["dpo", "kto", "reward"])
def test_r04_kills_of_every_unit(tmp_path, objective):
    report = run_harness("kill_harness", tmp_path, 8, 0, objective)
    assert report["kills"] == 8
    assert report["finished"] >= 1


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kills", "seed"), [(50, 1), (200, 2)])
def test_r02_kills_with_quotas(tmp_path, kills, seed):
    report = run_harness("kill_harness", tmp_path, kills, seed, timeout=880)
    assert report["kills"] == kills
    assert report["quotas_met"], report["phases"]


def test_p01_p02_p03_p04_signals_save_and_resume_exactly(tmp_path):
    report = run_harness("signal_harness", tmp_path, 6)
    assert report["slowest_stop_s"] < 10


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_p01_fifty_stops(tmp_path):
    report = run_harness("signal_harness", tmp_path, 50, 1, timeout=880)
    assert report["slowest_stop_s"] < 10
