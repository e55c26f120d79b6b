"""Whole tiny runs from cached states of frozen layers: as without the cache, and the same to the bit after a crash."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.records import write_records
from tests.tiny import tiny_model_folder

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import CheckpointError, MachineError, UsageError
from tunesmith.models.products import has_int8
from tunesmith.recipe import load_recipe
from tunesmith.run import execute
from tunesmith.track.progress import make_progress
from tunesmith.track.run_dir import RunDir
from tunesmith.train import trunk

LORA = ("model.adapter.last=1",)
FREEZE = ("model.adapter.method=freeze", "model.adapter.last=1")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"), num_hidden_layers=3)


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """How many records each pass through the frozen layers alone is for."""
    seen: list[int] = []
    compute = trunk.Trunk.compute

    def counted(self, group):
        seen.append(len(group))
        compute(self, group)

    monkeypatch.setattr(trunk.Trunk, "compute", counted)
    return seen


def train(folder: Path, model: Path, objective: str, *settings: str, run: RunDir | None = None) -> RunDir:
    """Three epochs over twelve records that begin with one system prompt, in steps of four."""
    kind = {"sft": "sequence", "dpo": "pair", "kto": "feedback", "reward": "pair"}[objective]
    data = write_records(folder / f"{kind}.jsonl", kind, 12, system="you are a helpful assistant and answer briefly")
    words = [f"model.path={model}", f"data.train={data}", f"objective={objective}", "train.sequences_per_step=4"]
    words += ["train.optimizer.lr=1e-2", "train.epochs=3", "train.checkpoint.every=1", "train.checkpoint.keep=20"]
    recipe = load_recipe(None, [*words, *settings], {}).recipe
    run = run or RunDir.create(folder / "runs")
    with make_progress(quiet=True) as progress:
        execute(recipe, run, Mesh(), progress)
    return run


def losses(run: RunDir) -> list[float]:
    """Of every step; the last one written of a step that was taken again."""
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return list({row["step"]: row["train/loss"] for row in rows if "train/loss" in row}.values())


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    (file,) = [*run.path.glob("adapter/*.safetensors"), *run.path.glob("model/*.safetensors")]
    return load_file(file)


def equal(one: RunDir, other: RunDir) -> bool:
    mine, theirs = weights(one), weights(other)
    same = mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    return same and losses(one) == losses(other)


@pytest.mark.parametrize("method", [LORA, FREEZE], ids=["lora", "freeze"])
@pytest.mark.parametrize("objective", ["sft", "dpo", "kto", "reward"])
def test_losses_are_those_without_the_cache(model, tmp_path, computed, objective, method):
    plain = train(tmp_path, model, objective, *method)
    assert computed == []
    cached = train(tmp_path, model, objective, *method, "train.cache_trunk=disk")
    assert sum(computed) == 12
    assert losses(cached)[0] == pytest.approx(losses(plain)[0], abs=1e-6)
    assert losses(cached) == pytest.approx(losses(plain), abs=1e-4)  # nine steps at a high rate make rounding grow
    assert losses(cached)[-1] < losses(cached)[0]


def test_dropout_of_adapters_above_the_trunk_draws_the_same_numbers(model, tmp_path):
    settings = [*LORA, "model.adapter.dropout=0.3"]
    plain = train(tmp_path, model, "sft", *settings)
    cached = train(tmp_path, model, "sft", *settings, "train.cache_trunk=memory")
    assert losses(cached) == pytest.approx(losses(plain), abs=1e-4)


def test_memory_and_disk_and_states_of_an_earlier_run_are_equal_to_the_bit(model, tmp_path, computed):
    disk = train(tmp_path, model, "dpo", *LORA, "train.cache_trunk=disk")
    again = train(tmp_path, model, "dpo", *LORA, "train.cache_trunk=disk")
    assert sum(computed) == 12
    memory = train(tmp_path, model, "dpo", *LORA, "train.cache_trunk=memory")
    assert sum(computed) == 24
    assert equal(disk, again)
    assert equal(disk, memory)


def test_other_rates_ranks_seeds_and_steps_use_the_same_states(model, tmp_path, computed):
    always = [*LORA, "train.cache_trunk=disk", "train.checkpoint.every=0"]
    train(tmp_path, model, "sft", *always)
    other = ["train.seed=3", "train.optimizer.lr=1e-3", "train.sequences_per_step=3", "model.adapter.rank=4"]
    train(tmp_path, model, "sft", *always, *other)
    assert sum(computed) == 12
    train(tmp_path, model, "sft", *always, "model.adapter.last=2")
    train(tmp_path, model, "sft", *always, "model.dtype=bfloat16")
    assert sum(computed) == 36


@pytest.mark.skipif(not has_int8("cpu"), reason="this processor has no fast products in 8 bits")
def test_states_of_products_in_8_bits_are_kept_apart(model, tmp_path, computed):
    settings = [*LORA, "train.cache_trunk=disk", "train.checkpoint.every=0"]
    train(tmp_path, model, "sft", *settings)
    plain = train(tmp_path, model, "sft", *LORA, "model.base_products=int8")
    cached = train(tmp_path, model, "sft", *settings, "model.base_products=int8")
    assert sum(computed) == 24
    assert losses(cached)[0] == pytest.approx(losses(plain)[0], abs=1e-6)


@pytest.mark.parametrize("fate", ["memory", "kept", "lost", "damaged"])
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(model, tmp_path, home, fate):
    where = "memory" if fate == "memory" else "disk"
    settings = [*LORA, f"train.cache_trunk={where}", "model.dtype=bfloat16"]
    whole = train(tmp_path, model, "dpo", *settings)
    broken = RunDir(tmp_path / "broken")
    shutil.copytree(whole.path, broken.path)
    shutil.rmtree(broken.path / "adapter")
    for step in range(5, 10):
        shutil.rmtree(broken.checkpoints / f"step-{step}")
    if fate == "lost":
        shutil.rmtree(home / "trunk")
    if fate == "damaged":
        (file,) = (home / "trunk").glob("*/states.bin")
        content = bytearray(file.read_bytes())
        content[:2000] = bytes(2000)
        file.write_bytes(content)
    train(tmp_path, model, "dpo", *settings, run=broken)
    assert len(losses(broken)) == 9
    assert equal(broken, whole)


def test_a_resume_refuses_another_cache(model, tmp_path):
    run = train(tmp_path, model, "sft", *LORA)
    with pytest.raises(CheckpointError, match="cache_trunk"):
        train(tmp_path, model, "sft", *LORA, "train.cache_trunk=disk", run=run)


@pytest.mark.parametrize("settings", [(), ("model.adapter.method=full",), (*LORA, "train.neftune_alpha=5")])
def test_what_cannot_be_exact_is_refused_before_the_first_step(model, tmp_path, settings):
    with pytest.raises(UsageError) as caught:
        train(tmp_path, model, "sft", *settings, "train.cache_trunk=disk")
    assert caught.value.diagnostic.code == "E197"
    assert caught.value.diagnostic.fixes


def test_a_full_disk_is_an_error_that_says_so(model, tmp_path, monkeypatch):
    write = os.pwrite

    def full(file: int, data: Any, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{file}").endswith("states.bin"):
            raise OSError(28, "No space left on device")
        return write(file, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(MachineError) as caught:
        train(tmp_path, model, "sft", *LORA, "train.cache_trunk=disk")
    assert caught.value.diagnostic.code == "E198"


def test_held_out_data_is_measured_as_without_the_cache(model, tmp_path):
    held_out = write_records(tmp_path / "held_out.jsonl", "sequence", 5, seed=1)
    found = []
    for where in ("off", "disk"):
        run = train(tmp_path, model, "sft", *LORA, f"train.cache_trunk={where}", f"data.eval={held_out}")
        rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
        found.append([row["eval/loss"] for row in rows if "eval/loss" in row][-1])
    assert math.isclose(*found, abs_tol=1e-4)
