"""X1 to X3, X5, X7, X8: ranks that die, hang, fail, lag or mean something else, named by the supervisor."""

import os
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.distributed.crew import evidence_of, launch, surroundings, training

from tunesmith import run as running
from tunesmith.distributed.ending import Ended
from tunesmith.distributed.launch import supervise
from tunesmith.running import agreement
from tunesmith.track.reader import read_lines, read_metrics


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with surroundings(folder) as recipe:
        yield folder, recipe


def gone(launched) -> bool:
    """Whether nothing of the ranks is left."""
    return not any(Path(f"/proc/{process.pid}").exists() for process in launched.processes)


def since(trace: Path) -> float:
    """Seconds since a fault left its trace, which it did just before it struck: proof that it did."""
    return time.time() - trace.stat().st_mtime


def struck(rank: int, step: int, action: str, trace: Path) -> str:
    where = f"train.step@step={step}@rank={rank}"
    return f"{where}:trace:{trace}; {where}:{action}"


def losses(run: Path) -> list[tuple[int, str]]:
    return [
        (row["step"], float(row["train/loss"]).hex())
        for row in read_metrics(run / "metrics.jsonl")
        if "train/loss" in row
    ]


def killed(place, rank: int, step: int) -> None:
    folder, recipe = place
    own = folder / f"kill-{rank}-{step}"
    launched, trace = [], own.with_suffix(".trace")

    def attempt(number: int) -> Ended:
        armed = struck(rank, step, "kill", trace) if number == 0 else ""
        launched.append(launch(own / f"attempt-{number}", training(recipe, own / "run", armed)))
        return launched[-1].run()

    ends = []
    ended = supervise(attempt, 1, lambda failed, number: ends.append((failed, since(trace), number)))
    assert ended.code == 0, ended.error
    (failed, seconds, number) = ends[0]
    assert (failed.code, failed.rank, failed.step, number) == (7, rank, step, 1)
    assert seconds <= 10
    message = failed.error.diagnostic.message
    assert f"rank {rank} on {os.uname().nodename} was ended by SIGKILL in step {step}" in message
    assert sum(f"rank {1 - rank}:" in line for line in failed.error.diagnostic.evidence) == 1
    assert all(gone(each) for each in launched)
    assert losses(own / "run") == losses(folder / "whole")
    one, other = (load_file(path / "adapter/adapter_model.safetensors") for path in (own / "run", folder / "whole"))
    assert all(one[name].equal(other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(place):
    folder, recipe = place
    ended = launch(folder / "whole-launch", training(recipe, folder / "whole")).run()
    assert ended.code == 0, ended.error
    assert len(losses(folder / "whole")) == 12


@pytest.mark.row("X1", "R5")
def test_x01_a_killed_rank_is_named_and_the_restart_is_exact(place, whole):
    killed(place, rank=1, step=4)


@pytest.mark.nightly
@pytest.mark.row("X1")
def test_x01_twenty_kills(place, whole, evidence):
    cases = [(rank, step) for rank in (0, 1) for step in range(1, 13) if (rank, step) != (1, 4)][:20]
    for rank, step in cases:
        killed(place, rank, step)
    evidence(
        "X1", claim="ranks killed, named within 10 s and restarted to the bit", figure=f"{len(cases)} of 20", seed=0
    )


@pytest.mark.row("X2")
def test_x02_a_stopped_rank_is_named_with_the_stacks_of_all(place, evidence):
    folder, recipe = place
    trace, limit = folder / "stop.trace", 6.0
    armed = struck(1, 3, "stop", trace)
    launched = launch(folder / "stop", training(recipe, folder / "stop-run", armed), hang_seconds=limit)
    ended = launched.run()
    seconds = since(trace)
    assert (ended.code, ended.rank, ended.step) == (8, 1, 3)
    assert seconds <= 1.5 * limit
    assert "rank 1 on" in ended.error.diagnostic.message
    assert "stopped by a signal" in evidence_of(ended)
    assert "rank 0: step 3, waiting for the others" in ended.stacks
    assert "all_reduce" in ended.stacks
    assert gone(launched)
    evidence("X2", claim="a stopped rank is named within 1.5 times the limit", figure=f"{seconds / limit:.2f}", seed=0)


@pytest.mark.row("X2")
def test_x02_a_rank_that_waits_for_ever_is_named_where_it_stands(place):
    folder, recipe = place
    trace = folder / "wait.trace"
    armed = struck(0, 3, "delay:600000", trace)
    ended = launch(folder / "wait", training(recipe, folder / "wait-run", armed), hang_seconds=5).run()
    assert since(trace) <= 7.5
    assert (ended.code, ended.rank, ended.step) == (8, 0, 3)
    first, second = ended.error.diagnostic.evidence[:2]
    assert first.startswith("rank 0: step 3, computing")
    assert "faults.py" in first
    assert second.startswith("rank 1: step 3, waiting for the others")


@pytest.mark.row("X3")
def test_x03_the_rank_that_raised_speaks_first_and_the_others_in_a_line(place):
    folder, recipe = place
    launched = launch(folder / "raise", training(recipe, folder / "raise-run", "train.step@step=2@rank=1:raise"))
    ended = launched.run()
    assert (ended.code, ended.rank, ended.step) == (1, 1, 2)
    assert ended.error.diagnostic.message == "InjectedFault: train.step at step 2"
    assert [line.partition(" (")[0] for line in ended.error.diagnostic.evidence if line.startswith("rank 0")] == [
        "rank 0: lost the others"
    ]
    assert gone(launched)


@pytest.mark.row("X5")
def test_x05_a_slow_rank_is_warned_of(place):
    folder, recipe = place
    trace = folder / "slow.trace"
    armed = f"train.step@rank=1:trace:{trace}; train.step@rank=1:delay:400"
    ended = launch(folder / "slow", training(recipe, folder / "slow-run", armed)).run()
    assert ended.code == 0, ended.error
    assert len(trace.read_text().splitlines()) == 12
    warnings = [row for row in read_lines(folder / "slow-run/events.jsonl") if row.get("code") == "W466"]
    assert len(warnings) == 1
    assert warnings[0]["message"].startswith("rank 1 is ")
    assert "% of a step" in warnings[0]["message"]


def changed(recipe, name: str, value):
    assert name == "train.optimizer.lr"
    rate = recipe.train.optimizer.model_copy(update={"lr": value})
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"optimizer": rate})})


@pytest.mark.row("X7")
@pytest.mark.parametrize("what", ["recipe", "data", "code"])
def test_x07_ranks_that_mean_something_else_are_refused_with_the_difference(place, what):
    folder, recipe = place
    other, run = recipe, folder / f"{what}-run"
    if what == "recipe":
        other = changed(recipe, "train.optimizer.lr", 0.5)
    if what == "data":
        path = folder / "other.jsonl"
        path.write_text("".join((folder / "sequence.jsonl").read_text().splitlines(keepends=True)[1:]))
        source = recipe.data.train[0].model_copy(update={"path": str(path)})
        other = recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": (source,)})})

    def work(mesh):
        if what == "code":
            agreement.code_hash = lambda: f"sources of rank {mesh.rank}"
            agreement.agree_on_start(recipe, mesh)
        training({0: recipe, 1: other}, run)(mesh)

    ended = launch(folder / f"{what}-launch", work).run()
    assert ended.code == 2
    assert ended.error.diagnostic.code == "E500"
    shown = {"recipe": "train.optimizer.lr: 0.0002 on rank 0, 0.5 on rank 1", "data": "data hash: ", "code": "code: "}
    assert shown[what] in evidence_of(ended)
    assert not (run / "metrics.jsonl").exists() or not losses(run)


@pytest.mark.row("X8")
@pytest.mark.parametrize("where", ["save", "log", "eval"])
def test_x08_a_failure_of_the_first_rank_alone_leaves_nobody_waiting(place, where):
    folder, recipe = place
    armed = {
        "save": "ckpt.before_manifest@rank=0:raise",
        "log": "log.before_write@rank=0@file=metrics.jsonl@step=2:errno:ENOSPC",
        "eval": "",
    }[where]
    measured = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"data": recipe.data.eval})})

    def work(mesh):
        if where == "eval":
            running.measure = lambda *_: 1 / 0
        training(measured if where == "eval" else recipe, folder / f"first-{where}", armed)(mesh)

    begun = time.monotonic()
    launched = launch(folder / f"first-{where}-launch", work)
    ended = launched.run()
    assert (ended.code, ended.rank) == ({"log": 5}.get(where, 1), 0)
    word = {"save": "InjectedFault: ckpt.before_manifest", "log": "the disk is full", "eval": "ZeroDivisionError"}
    assert word[where] in ended.error.diagnostic.message
    assert gone(launched)
    assert time.monotonic() - begun < 60, "the others waited for their time limit"


@pytest.mark.row("P1", "P3")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_to_the_supervisor_is_answered_by_all_ranks_with_a_checkpoint(place, number, code):
    folder, recipe = place
    run, trace = folder / f"signal-{code}", folder / f"signal-{code}.trace"
    armed = f"train.step@step=3@rank=0:trace:{trace}; train.step@step=3:delay:1500"
    launched = launch(folder / f"signal-{code}-launch", training(recipe, run, armed))
    parent = os.getpid()
    watcher = os.fork()
    if watcher == 0:
        while not trace.exists():
            time.sleep(0.02)
        os.kill(parent, number)
        os._exit(0)
    before = signal.signal(number, signal.default_int_handler)  # a shell's background jobs ignore SIGINT
    try:
        ended = launched.run()
    finally:
        signal.signal(number, before)
    os.waitpid(watcher, 0)
    assert trace.exists()
    assert (ended.code, ended.error.exit_code, ended.asked) == (code, code, True)
    assert (run / "checkpoints/step-3").is_dir()
    assert gone(launched)
