"""Runs in fp8: they go on to the bit, save what was trained in its own type, and lose little; plans and refusals."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests.unit.running.test_precision_runs import files_of, start, steps_of

from tunesmith.models.load import load_base
from tunesmith.recipe import load_recipe

__all__ = ["start"]  # a fixture

FULL = ("model.adapter=full", "train.optimizer.lr=1e-3")
EMULATED = ("train.fp8.emulate=true", "train.fp8.smallest=16")
WAYS = {
    "by row": (*FULL, "model.dtype=bfloat16"),
    "by tensor": (*FULL, "model.dtype=bfloat16", "train.fp8.scaling=tensorwise"),
    "fp32": (*FULL, "model.dtype=float32", "train.fp8.gradients=e5m2"),
    "without masters": (*FULL, "model.dtype=bfloat16", "train.optimizer.rounding=stochastic"),
    "in backward": (*FULL, "model.dtype=bfloat16", "train.optimizer.in_backward=true", "train.clip_norm=0"),
    "layers in turns": ("model.adapter={method: lisa, layers: 1, every: 1}", "model.dtype=bfloat16"),
    "last layer": ("model.adapter={method: freeze, last: 1}", "model.dtype=bfloat16"),
}


@pytest.mark.parametrize("words", WAYS.values(), ids=list(WAYS))
def test_a_run_goes_on_to_the_bit_and_saves_what_it_trained(start, words):
    run = start("run", *words, *EMULATED)
    ended = files_of(run, "weights", "optimizer")
    dtype = torch.float32 if "model.dtype=float32" in words else torch.bfloat16
    assert {value.dtype for name, value in ended.items() if name.startswith("weights")} == {dtype}
    shutil.rmtree(run.checkpoints / "step-4")
    start("run", *words, *EMULATED)
    again = files_of(run, "weights", "optimizer")
    assert ended.keys() == again.keys()
    assert [name for name in ended if not torch.equal(ended[name], again[name])] == []
    plain = start("plain", *words)
    assert files_of(plain, "weights").keys() == {name for name in ended if name.startswith("weights")}
    assert any(not torch.equal(value, ended[name]) for name, value in files_of(plain, "weights").items())


def test_the_model_that_is_saved_has_the_same_tensors_and_loads_as_ever(start):
    runs = [start(name, *FULL, "model.dtype=bfloat16", *words) for name, words in (("eight", EMULATED), ("plain", ()))]
    files = [next(run.path.rglob("model.safetensors")) for run in runs]
    ours, theirs = map(load_file, files)
    assert {name: (value.dtype, value.shape) for name, value in ours.items()} == {
        name: (value.dtype, value.shape) for name, value in theirs.items()
    }
    recipe = load_recipe(None, [f"model.path={files[0].parent}", "model.dtype=bfloat16"], {}).recipe
    held = dict(load_base(files[0].parent, recipe.model).named_parameters())
    assert all(torch.equal(held[name], value) for name, value in ours.items() if name in held)


def losses(run):
    return [row["train/loss"] for row in steps_of(run) if "train/loss" in row]


@pytest.mark.parametrize("scaling", ["rowwise", "tensorwise"])
def test_fifty_steps_lose_little_against_bf16(start, scaling):
    words = (*FULL, "model.dtype=bfloat16", "train.steps=50", "train.evaluate_every=25", "train.checkpoint.every=50")
    exact, eight = start("exact", *words), start("eight", *words, *EMULATED, f"train.fp8.scaling={scaling}")
    theirs, ours = losses(exact), losses(eight)
    assert len(ours) == len(theirs) == 50
    assert theirs[-1] < 0.5 * theirs[0]
    assert ours != theirs
    assert abs(ours[0] - theirs[0]) < 0.01 * theirs[0]
    apart = sum(abs(one - other) for one, other in zip(ours, theirs, strict=True)) / 50

    assert apart < 0.02
