"""Trainings that are killed and resumed become, to the bit, what they would have become."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.e2e.resume_methods import EVERY, FURTHER

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


QUOTAS = "quota: 20 % while starting, 20 % in steps, 20 % in saves, 5 % while pruning"


def check_kills(report: dict, kills: int) -> None:
    assert report["kills"] == kills
    assert report["quotas_met"], report["phases"]
    assert report["finished"] >= 1
    assert report["later_epoch"] >= 1


def test_r02_twenty_kills(tmp_path, evidence):
    report = run_harness("kill_harness", tmp_path, 20)
    check_kills(report, 20)
    evidence("R2", claim=f"random SIGKILLs ({QUOTAS})", figure=told(report), seed=0)


def told(report: dict) -> str:
    phases = ", ".join(f"{count:,} {name}" for name, count in sorted(report["phases"].items()))
    return (
        f"{report['kills']:,} kills ({phases}), 0 corrupt, 0 committed steps lost, "
        f"{report['finished']} of {report['finished']} finished runs equal to the bit"
    )


@pytest.mark.parametrize("objective", ["dpo", "kto", "reward"])
def test_r04_kills_of_every_unit(tmp_path, objective):
    """Eight kills are too few for the quotas of R2: steps and saves are met, and the second epoch is."""
    report = run_harness("kill_harness", tmp_path, 8, 0, objective)
    assert report["kills"] == 8
    assert min(report["phases"].get(name, 0) for name in ("train", "save")) >= 1, report["phases"]
    assert report["later_epoch"] >= 1
    assert report["finished"] >= 1


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_r02_a_thousand_kills(tmp_path, evidence):
    report = run_harness("kill_harness", tmp_path, 1000, 5, timeout=1780)
    check_kills(report, 1000)
    evidence("R2", claim=f"random SIGKILLs ({QUOTAS})", figure=told(report), seed=5)


def check_matrix(folder: Path, methods: tuple[str, ...], cases: int, evidence: Callable[..., None]) -> None:
    report = run_harness("resume_matrix", folder, cases, *methods, timeout=1780)
    assert {method: told["stopped"] for method, told in report["methods"].items()} == dict.fromkeys(methods, cases)
    for row, named in (("R3", methods[:1]), ("R4", methods[1:])) if methods is EVERY else (("R4", methods),):
        claim = f"stops and resumes of {', '.join(named)}: for each {cases} of the 48 ({PLACES})"
        count = cases * len(named)
        evidence(row, claim=claim, figure=f"{count:,} of {count:,} equal to the bit", seed=0)


PLACES = "epoch 1/2/3, middle/end, 1/4 microbatches, packed/alone, saved in the background/not"


def test_r03_r04_resumes_of_every_method_a_few(tmp_path, evidence):
    check_matrix(tmp_path, EVERY, 2, evidence)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_r03_r04_resumes_of_every_kind(tmp_path, evidence):
    check_matrix(tmp_path, EVERY, 48, evidence)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_r04_resumes_of_further_methods(tmp_path, evidence):
    check_matrix(tmp_path, FURTHER, 6, evidence)


def test_p01_p02_p03_p04_signals_save_and_resume_exactly(tmp_path):
    report = run_harness("signal_harness", tmp_path, 8)
    assert report["slowest_stop_s"] < 10


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_p01_p02_fifty_stops(tmp_path, evidence):
    report = run_harness("signal_harness", tmp_path, 50, 1, timeout=880)
    stops = sum(report["tried"][moment] for moment in ("start", "train", "save", "prune"))
    assert stops >= 50
    assert report["slowest_stop_s"] <= 5
    met = report["met"]
    assert min(met["start"], met["train"], met["save"] + met["prune"]) >= stops // 10, met
    evidence(
        "P1",
        "P2",
        claim="SIGTERMs answered by a checkpoint, exit 75, resumed to the bit",
        figure=f"{stops} of {stops}, the slowest in {report['slowest_stop_s']} s "
        f"({report['dearest_stop_cpu_s']} s of processor time at most); they came in {met}",
        seed=1,
    )
