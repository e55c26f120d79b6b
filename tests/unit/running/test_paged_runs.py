"""Whole runs with states in a file: equal to the bit to runs without, whatever ends them, and no file left."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from tests.e2e.attempts import Attempt
from tests.tiny import tiny_model_folder

from tunesmith import faults
from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import Preempted
from tunesmith.recipe import load_recipe
from tunesmith.run import execute
from tunesmith.track.progress import NoProgress
from tunesmith.track.run_dir import RunDir
from tunesmith.train.loop import Loop

FILE = "train.optimizer.paging=file"


@pytest.fixture
def recipe_of(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    model, data = tiny_model_folder(tmp_path / "model", vocab_size=4000), tmp_path / "data.jsonl"
    lines = [{"prompt": f"number {index}?", "completion": f"it is {index * 7}"} for index in range(12)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def made(*words: str):
        settings = [f"model.path={model}", f"data.train={data}", "train.sequences_per_step=4", "model.adapter=full"]
        settings += ["train.steps=20", "train.checkpoint.every=5", "train.optimizer.lr=1e-3", "train.threads=1"]
        settings += ["train.optimizer.weight_decay=0.1", "train.clip_norm=0.5"]
        return load_recipe(None, [*settings, *words], {}).recipe

    return made


def run_in(path, recipe) -> RunDir:
    run = RunDir(path) if path.exists() else RunDir.create(path.parent, path.name)
    execute(recipe, run, Mesh(), NoProgress())
    return run


def assert_alike(one: RunDir, other: RunDir) -> None:
    """The last checkpoints, states included, and the final weights."""
    for name in ("checkpoints/step-20/optimizer", "checkpoints/step-20/weights", "model/model"):
        first, second = (load_file(run.path / f"{name}.safetensors") for run in (one, other))
        assert first.keys() == second.keys()
        assert [key for key in first if not torch.equal(first[key], second[key])] == []


def listed(run: RunDir) -> set[str]:
    return {path.name for path in run.path.iterdir()}


def mapped(process: int, folder) -> list[str]:
    """The parts of a nameless file in a folder that a process has mapped."""
    with open(f"/proc/{process}/maps") as lines:
        return [line for line in lines if str(folder) in line and "(deleted)" in line]


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_a_run_equals_one_in_memory_and_leaves_no_file(recipe_of, tmp_path, monkeypatch, name):
    optimizer, seen = f"train.optimizer.name={name}", []
    answer = Loop.answer
    monkeypatch.setattr(Loop, "answer", lambda loop, signals: seen.append(look()) or answer(loop, signals))

    def look():
        return len(mapped(os.getpid(), tmp_path / "runs" / "paged"))

    plain = run_in(tmp_path / "runs" / "plain", recipe_of(optimizer))
    paged = run_in(tmp_path / "runs" / "paged", recipe_of(optimizer, FILE))
    assert_alike(plain, paged)
    assert seen[:20] == [0] * 20
    assert min(seen[20:]) > 0
    assert look() == 0
    assert listed(paged) == listed(plain)


def test_a_resume_may_switch_paging_on_or_off(recipe_of, tmp_path):
    whole = run_in(tmp_path / "runs" / "whole", recipe_of())
    run = RunDir.create(tmp_path / "runs", "switched")
    with pytest.raises(Preempted):
        stopped(run, recipe_of(FILE), 7)
    with pytest.raises(Preempted):
        stopped(run, recipe_of(), 6)
    run_in(run.path, recipe_of(FILE))
    assert_alike(whole, run)


def stopped(run, recipe, after):
    """A run that is told to stop after so many steps of its own."""
    faults.arm("")
    count = []

    class Stopping(NoProgress):
        def step(self, step, total, values):
            count.append(step)
            if len(count) == after:
                os.kill(os.getpid(), signal.SIGTERM)

    execute(recipe, run, Mesh(), Stopping())


def test_an_exception_leaves_no_file_behind(recipe_of, tmp_path, monkeypatch):
    real, path = Loop.judge, tmp_path / "runs" / "broken"

    def fail(loop, result):
        if loop.position.step == 2:
            assert mapped(os.getpid(), path)
            raise RuntimeError("a bug")
        return real(loop, result)

    monkeypatch.setattr(Loop, "judge", fail)
    run = RunDir.create(path.parent, path.name)
    with pytest.raises(RuntimeError, match="a bug") as caught:
        execute(recipe_of(FILE), run, Mesh(), NoProgress())
    assert not mapped(os.getpid(), path), caught  # although the traceback still holds the loop
    assert not [name for name in listed(run) if name.startswith(("tmp", ".tmp", "states"))]


def test_a_killed_run_leaves_no_file_and_goes_on_to_the_bit(recipe_of, tmp_path):
    whole = run_in(tmp_path / "runs" / "whole", recipe_of())
    recipe, path = recipe_of(FILE), tmp_path / "runs" / "killed"
    attempt = Attempt(recipe, path)
    assert attempt.reach("train.step", 8), attempt.log
    assert mapped(attempt.child, path)
    assert attempt.kill() == -signal.SIGKILL
    assert listed(RunDir(path)) <= listed(whole)
    again = Attempt(recipe, path)
    assert again.finish() == 0, again.log
    assert_alike(whole, RunDir(path))
    assert listed(RunDir(path)) == listed(whole)
