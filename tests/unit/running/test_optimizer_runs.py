"""Runs with every optimiser: states as planned, a resume to the bit, and the averaged weights where they belong."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import tiny_model_folder

from tunesmith.distributed.mesh import Mesh
from tunesmith.models.inventory import take_inventory, trainable
from tunesmith.planning.memory import state_bytes
from tunesmith.planning.optimizers import optimizer_problems
from tunesmith.recipe import load_recipe
from tunesmith.run import execute
from tunesmith.track.progress import make_progress
from tunesmith.track.run_dir import RunDir
from tunesmith.train.optimizers import OPTIMIZERS

LOW = ["train.optimizer.rank=8", "train.optimizer.every=2", "train.optimizer.states=int8"]
EXTRA = {"galore": LOW, "apollo": LOW, "schedule_free": ["train.schedule.name=constant"]}
NAMES = [kind.model_fields["name"].default for kind in OPTIMIZERS]


@pytest.fixture
def start(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    model, data = tiny_model_folder(tmp_path / "model"), tmp_path / "data.jsonl"
    lines = [{"prompt": f"number {index}?", "completion": f"it is {index * 7}"} for index in range(12)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run_in(folder: str, *words: str):
        settings = [f"model.path={model}", f"data.train={data}", f"data.eval={data}", "train.sequences_per_step=4"]
        settings += ["train.steps=4", "train.checkpoint.every=2", "train.evaluate_every=1"]
        recipe = load_recipe(None, [*settings, *words], {}).recipe
        path = tmp_path / "runs" / folder
        run = RunDir(path) if path.exists() else RunDir.create(tmp_path / "runs", folder)
        with make_progress(quiet=True) as progress:
            execute(recipe, run, Mesh(), progress)
        return run, recipe

    return run_in


def states_of(run, step):
    return load_file(run.checkpoints / f"step-{step}" / "optimizer.safetensors")


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("name", NAMES)
def test_runs_take_the_states_planned_and_go_on_to_the_bit(start, tmp_path, name, adapter):
    if adapter == "lora" and name in ("galore", "apollo"):
        pytest.skip("factors of low rank are not projected")
    words = [f"train.optimizer={name}", f"model.adapter={adapter}", *EXTRA.get(name, ())]
    run, recipe = start("run", *words)
    states = states_of(run, 4)
    kept = sum(value.nbytes for key, value in states.items() if value.ndim and not key.endswith(".master"))
    inventory = take_inventory(tmp_path / "model")
    trained = trainable(inventory, recipe.model.adapter)
    assert kept == state_bytes(trained, recipe.train.optimizer.for_heads(inventory.head_dim))
    shutil.rmtree(run.checkpoints / "step-4")
    start("run", *words)
    again = states_of(run, 4)
    assert states.keys() == again.keys()
    assert [key for key in states if not torch.equal(states[key], again[key])] == []


def test_what_schedule_free_saves_and_keeps_is_the_average(start, tmp_path):
    words = ["train.optimizer=schedule_free", "model.adapter=full", *EXTRA["schedule_free"]]
    run, _ = start("run", *words)
    saved = load_file(run.checkpoints / "step-4" / "weights.safetensors")
    final = load_file(run.path / "model" / "model.safetensors")
    assert [name for name in final if not torch.equal(final[name], saved[name])] == []
    trained = {key.removesuffix(".master"): value for key, value in states_of(run, 4).items() if "master" in key}
    assert not torch.equal(trained["model.norm.weight"], saved["model.norm.weight"])
    start("unwatched", *words, "train.evaluate_every=0", "train.checkpoint.every=0")
    unwatched = load_file(tmp_path / "runs" / "unwatched" / "model" / "model.safetensors")
    assert [name for name in final if not torch.equal(final[name], unwatched[name])] == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["train.optimizer={name: galore, rank: 64}", "model.adapter=full"], "E302"),
        (["train.optimizer=galore", "model.adapter={method: freeze, names: [norm]}"], "E302"),
        (["train.optimizer=muon", "model.adapter={method: freeze, names: [embed]}"], "E303"),
        (["train.optimizer=adamw8bit", "model.adapter.rank=2"], "W302"),
    ],
)
def test_what_cannot_apply_is_told_with_a_way_out(tmp_path, words, code):
    inventory = take_inventory(tiny_model_folder(tmp_path / "model"))
    recipe = load_recipe(None, words, {}).recipe
    (problem,) = optimizer_problems(recipe, trainable(inventory, recipe.model.adapter))
    assert problem.code == code
    fixed = [f"{key}={value}" for key, value in problem.fixes[0].set.items()]
    mended = load_recipe(None, [*words, *fixed], {}).recipe
    assert list(optimizer_problems(mended, trainable(inventory, mended.model.adapter))) == []
