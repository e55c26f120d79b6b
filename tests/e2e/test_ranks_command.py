"""X1, X6, X10: `tunesmith train --ranks 2` as a user types it: processes, exit codes, what is told and kept."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.distributed.crew import LOOPBACK, own_listeners, surroundings
from tests.house.source import ROOT

from tunesmith.recipe import to_yaml
from tunesmith.track.reader import read_lines


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    with surroundings(folder) as made:
        path = folder / "recipe.yaml"
        path.write_text(to_yaml(made.model_copy(update={"run": made.run.model_copy(update={"ranks": 2})})))
        yield path


def begin(recipe: Path, *words: str, armed: str = "", **more: str) -> subprocess.Popen[str]:
    return tunesmith("train", str(recipe), f"run.folder={recipe.parent}", *words, armed=armed, **more)


def tunesmith(*words: str, armed: str = "", **more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TUNESMITH_FAULT": armed, "COLUMNS": "200", **more}
    return subprocess.Popen(
        [sys.executable, "-m", "tunesmith", *words],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.row("X1", "X3")
def test_x01_a_killed_rank_ends_the_command_with_7_and_its_name(recipe):
    armed = "train.step@step=4@rank=1:kill"
    process = begin(recipe, "run.name=killed", "run.max_restarts=0", armed=armed)
    out, told = process.communicate(timeout=280)
    assert process.returncode == 7, told
    assert out == ""
    (line,) = [line for line in told.splitlines() if line.startswith("error")]
    assert line == f"error[E498]: rank 1 on {os.uname().nodename} was ended by SIGKILL in step 4"
    assert "rank 0: lost the others" in told
    run = recipe.parent / "killed"
    assert f"tunesmith runs resume {run}" in told
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    (event,) = [row for row in read_lines(run / "events.jsonl") if row["event"] == "rank_failed"]
    assert (event["rank"], event["step"]) == (1, 4)


@pytest.mark.nightly
def test_r05_a_run_of_two_ranks_is_resumed_by_one_and_says_so(recipe):
    process = begin(recipe, "run.name=fewer", "run.max_restarts=0", "--yes", armed="train.step@step=4@rank=1:kill")
    _, told = process.communicate(timeout=280)
    assert process.returncode == 7, told
    run = recipe.parent / "fewer"
    process = tunesmith("runs", "resume", str(run), "--ranks", "1", "--json")
    out, told = process.communicate(timeout=280)
    assert process.returncode == 0, told
    assert json.loads(out)["steps"] == 12
    assert "warning[W525]: step 3 was saved by 2 ranks, and 1 rank will go on" in told
    assert "need not equal one of 2 to the bit" in told
    assert "W525" in (run / "log.txt").read_text()
    assert [row["step"] for row in read_lines(run / "metrics.jsonl") if "train/loss" in row] == list(range(1, 13))


@pytest.mark.nightly
@pytest.mark.row("X1", "X10", "S19", "P12")
def test_x01_x10_a_killed_rank_is_started_again_and_nothing_listens_outside(recipe):
    process = begin(recipe, "run.name=again", "run.max_restarts=2", "--json", armed="train.step:delay:300")
    steps, listeners, pids = recipe.parent / "again/metrics.jsonl", [], []
    while (process.poll() is None and len(pids) < 2) or not steps.exists() or steps.read_text().count("\n") < 5:
        pids = children(process.pid)
        time.sleep(0.05)
    listeners = [address for pid in (process.pid, *pids) for address in own_listeners(pid)]
    os.kill(pids[1], signal.SIGKILL)
    out, told = process.communicate(timeout=280)
    assert process.returncode == 0, told
    assert len(listeners) >= 2
    assert all(address.startswith(LOOPBACK) for address in listeners)
    assert "warning[W467]: rank 1 on" in told
    assert "starting again (1 of 2)" in told
    assert json.loads(out)["steps"] == 12
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.nightly
@pytest.mark.row("P1", "X1")
def test_p01_a_stopped_launcher_saves_and_a_killed_one_leaves_nobody_behind(recipe):
    for number, code, name in ((signal.SIGTERM, 75, "term"), (signal.SIGKILL, -9, "kill")):
        process = begin(recipe, f"run.name={name}", armed="train.step:delay:300")
        rows, run = recipe.parent / name / "metrics.jsonl", recipe.parent / name
        while not rows.exists() or rows.read_text().count("\n") < 3:
            assert process.poll() is None
            time.sleep(0.05)
        pids = children(process.pid)
        process.send_signal(number)
        process.communicate(timeout=120)
        assert process.returncode == code
        deadline = time.monotonic() + 30
        while any(Path(f"/proc/{pid}/fd").exists() for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert json.loads((run / "status.json").read_text())["exit_code"] == 75, "the ranks saved"
        assert sorted((run / "checkpoints").glob("step-*"))


@pytest.mark.row("X6")
def test_x06_another_number_of_ranks_than_the_launcher_started(recipe):
    process = begin(recipe, "--json", WORLD_SIZE="3", RANK="0")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    error = json.loads(out)["error"]
    assert error["code"] == "E502"
    assert error["message"] == "run.ranks=2, but the launcher started 3 ranks"
