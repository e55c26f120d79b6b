"""Runs of every kind of method go on to the bit, leave a folder, and answer from it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import tiny_model_folder
from tests.unit.models.test_adapter_laws import logprobs

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import ModelError, UsageError
from tunesmith.export.huggingface import merge_run
from tunesmith.export.opening import open_model
from tunesmith.models.changing_config import LisaConfig
from tunesmith.models.inventory import take_inventory, trainable
from tunesmith.planning.adapters import adapter_problems
from tunesmith.planning.memory import state_bytes
from tunesmith.recipe import load_recipe
from tunesmith.run import execute
from tunesmith.track.progress import make_progress
from tunesmith.track.run_dir import RunDir
from tunesmith.train.lisa import Lisa
from tunesmith.train.optimizers.base import layer_of

METHODS = {
    "bottleneck": ["model.adapter={method: bottleneck, kind: houlsby, reduction: 8}"],
    "lisa": ["model.adapter={method: lisa, layers: 1, every: 2}", "train.optimizer.lr=1e-3"],
    "lisa in bf16": [
        "model.adapter={method: lisa, layers: 2, every: 1}",
        "model.dtype=bfloat16",
        "train.optimizer.lr=1e-3",
    ],
    "lisa rounded by chance": [
        "model.adapter={method: lisa, layers: 2, every: 1}",
        "model.dtype=bfloat16",
        "train.optimizer={name: adamw, rounding: stochastic, lr: 1e-3}",
    ],
    "lisa in backward": [
        "model.adapter={method: lisa, layers: 1, every: 2}",
        "train.optimizer={name: adamw, in_backward: true, lr: 1e-3}",
        "train.clip_norm=0",
    ],
    "adalora": ["model.adapter={method: adalora, rank: 2, start: 2, tinit: 1, tfinal: 2, every: 1}"],
    "adalora until the end": ["model.adapter={method: adalora, rank: 3, tinit: 0, tfinal: 0, every: 2}"],
    "boft": ["model.adapter={method: boft, block: 4, factors: 2}"],
    "bottleneck beside": ["model.adapter={method: bottleneck, kind: parallel}"],
}


@pytest.fixture
def start(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    model, data = tiny_model_folder(tmp_path / "model", num_hidden_layers=4), tmp_path / "data.jsonl"
    lines = [{"prompt": f"number {index}?", "completion": f"it is {index * 7}"} for index in range(12)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run_in(folder: str, *words: str):
        settings = [f"model.path={model}", f"data.train={data}", "train.sequences_per_step=4", "train.steps=6"]
        settings += ["train.optimizer.lr=1e-2", "train.checkpoint.every=3"]
        recipe = load_recipe(None, [*settings, *words], {}).recipe
        path = tmp_path / "runs" / folder
        run = RunDir(path) if path.exists() else RunDir.create(tmp_path / "runs", folder)
        with make_progress(quiet=True) as progress:
            execute(recipe, run, Mesh(), progress)
        return run

    return run_in


def contents(run, step=6):
    return {
        f"{path.stem} {name}": tensor
        for path in sorted((run.checkpoints / f"step-{step}").glob("*.safetensors"))
        for name, tensor in load_file(path).items()
        if path.stem != "rank0"
    }


def rows(run):
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return {line["step"]: line for line in lines if "train/loss" in line}


@pytest.mark.parametrize("words", METHODS.values(), ids=METHODS)
def test_a_run_that_is_stopped_goes_on_to_the_bit(start, words):
    run = start("run", *words)
    want, losses = contents(run), {step: row["train/loss"] for step, row in rows(run).items()}
    shutil.rmtree(run.checkpoints / "step-6")
    start("run", *words)
    found = contents(run)
    assert found.keys() == want.keys()
    assert [name for name in want if not torch.equal(want[name], found[name])] == []
    assert {step: row["train/loss"] for step, row in rows(run).items()} == losses
    assert losses[6] < losses[1]


@pytest.mark.parametrize("words", METHODS.values(), ids=METHODS)
def test_what_a_run_leaves_answers_as_its_last_checkpoint(start, words):
    run = start("run", *words)
    last, final = (open_model(str(run.path), which=which).model for which in ("newest", "final"))
    torch.testing.assert_close(logprobs(final), logprobs(last), atol=1e-6, rtol=1e-6)


def test_a_run_of_bottleneck_adapters_is_not_merged(start, tmp_path):
    run = start("run", *METHODS["bottleneck"])
    with pytest.raises(ModelError, match="E314"):
        merge_run(run.path, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_preferences_are_compared_with_bottleneck_adapters_switched_off(start, tmp_path):
    data = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"number {n}?", "chosen": f"it is {n}", "rejected": f"no idea {n}"} for n in range(8)]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    run = start("run", *METHODS["bottleneck"], f"data.train={data}", "objective=dpo")
    assert rows(run)[1]["train/loss"] == pytest.approx(0.693147, abs=1e-5)
    assert rows(run)[6]["train/loss"] < 0.69


LISA = ["model.adapter={method: lisa, layers: 1, every: 2}", "train.optimizer.lr=1e-3", "train.checkpoint.every=1"]


def draws_of(layers: int, every: int, seed: int, steps: int) -> list[set[int]]:
    lisa = Lisa(LisaConfig(layers=layers, every=every), seed)
    lisa.depth = 4
    return [set(lisa.draw(step // every)) for step in range(steps)]


@pytest.mark.parametrize("seed", [0, 5])
def test_lisa_moves_the_drawn_layers_and_what_is_in_none(start, tmp_path, seed):
    run = start("run", *LISA, f"train.seed={seed}", "train.checkpoint.keep=9")
    before = load_file(tmp_path / "model" / "model.safetensors")
    draws = draws_of(1, 2, seed, 6)
    assert draws[0] == draws[1]
    assert len({frozenset(drawn) for drawn in draws}) > 1
    for step, drawn in enumerate(draws, 1):
        after = load_file(run.checkpoints / f"step-{step}" / "weights.safetensors")
        assert after.keys() == before.keys()
        moved = {layer_of(name) for name in after if not torch.equal(after[name], before[name])}
        assert moved == {None, -1, *drawn}
        states = load_file(run.checkpoints / f"step-{step}" / "optimizer.safetensors")
        assert {layer_of(name) for name in states} == {None, -1, *drawn}
        assert states["model.norm.weight.step"] == step
        at_work = states[f"model.layers.{min(drawn)}.mlp.up_proj.weight.step"]
        stays = next(count for count in range(step) if count == step - 1 or draws[step - 2 - count] != drawn) + 1
        assert at_work == stays
        before = after


def test_layers_that_come_back_are_rounded_by_another_chance(start):
    words = ["model.dtype=bfloat16", "train.optimizer.rounding=stochastic", "train.checkpoint.keep=9"]
    run = start("run", *LISA, *words)
    for step in range(1, 7):
        states = load_file(run.checkpoints / f"step-{step}" / "optimizer.safetensors")
        assert {value.item() for name, value in states.items() if name.endswith(".rounds")} == {step}


def test_lisa_draws_every_layer_as_often(tmp_path):
    drawn = [layer for layers in draws_of(2, 1, 5, 4000) for layer in layers]
    shares = [drawn.count(layer) / len(drawn) for layer in range(4)]
    assert shares == pytest.approx([0.25] * 4, abs=0.02)


def test_lisa_takes_the_states_planned(start, tmp_path):
    run = start("run", *LISA)
    states = load_file(run.checkpoints / "step-6" / "optimizer.safetensors")
    kept = sum(value.nbytes for value in states.values() if value.ndim)
    inventory, recipe = take_inventory(tmp_path / "model"), load_recipe(None, LISA, {}).recipe
    trained = trainable(inventory, recipe.model.adapter)
    assert kept == state_bytes(trained, recipe.train.optimizer)
    assert trained.total == inventory.total
    assert trained.at_once == kept // 8


def test_lisa_of_more_layers_than_there_are_is_refused(tmp_path):
    inventory = take_inventory(tiny_model_folder(tmp_path))
    (problem,) = adapter_problems(load_recipe(None, ["model.adapter={method: lisa, layers: 3}"], {}).recipe, inventory)
    assert (problem.code, problem.fixes[0].set) == ("E352", {"model.adapter.layers": 2})
    fits = load_recipe(None, ["model.adapter={method: lisa, layers: 2}"], {}).recipe
    assert list(adapter_problems(fits, inventory)) == []


@pytest.mark.parametrize(
    "words", [["train.optimizer=schedule_free", "train.schedule=constant"], ["train.optimizer.lr_layer_decay=0.9"]]
)
def test_what_lisa_cannot_drop_is_refused(words):
    with pytest.raises(UsageError, match="E353") as caught:
        load_recipe(None, ["model.adapter=lisa", "train.optimizer.lr=2e-5", *words], {})
    fixed = [f"{key}={value}" for key, value in caught.value.diagnostic.fixes[0].set.items()]
    load_recipe(None, ["model.adapter=lisa", "train.optimizer.lr=2e-5", *words, *fixed], {})
