"""X9, X11: 1, 2 and 4 ranks have the same losses, gradient norms and final weights (fp32), also under torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.crew import launch, surroundings, training
from tests.records import write_records

from tunesmith.objectives import OBJECTIVES
from tunesmith.recipe import load_recipe

ROOT = Path(__file__).parents[2]
SETTINGS = ("train.epochs=2", "train.sequences_per_step=8", "data.max_length=160")
FIXED = ("train.microbatch_tokens=64", "train.optimizer.lr=1e-3")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    with surroundings(folder):
        yield folder / "model"


def train(folder: Path, world: int, model: Path, data: Path, method: str, objective: str, *extra: str) -> Path:
    """Train on so many ranks, forks of this process; returns the run."""
    given = [f"model.path={model}", f"data.train={data}", f"model.adapter={method}", f"objective={objective}"]
    recipe = load_recipe(None, [*given, *SETTINGS, *FIXED, *extra], {}).recipe
    run = folder / f"ranks-{world}"
    ended = launch(folder / f"launch-{world}", training(recipe, run), ranks=world).run()
    assert ended.code == 0, ended.error
    return run


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


CASES = [("full", "sft"), ("lora", "sft"), ("full", "dpo"), ("lora", "kto"), ("lora", "aot"), ("lora", "reward")]


@pytest.mark.row("X9")
@pytest.mark.parametrize(("method", "objective"), CASES)
def test_x11_ranks_give_the_same_losses_gradients_and_weights(tmp_path, model, method, objective):
    kind = next(each.kind for each in OBJECTIVES if each.model_fields["name"].default == objective)
    data = write_records(tmp_path / "data.jsonl", kind, 21)  # uneven over every number of ranks
    runs = {world: train(tmp_path, world, model, data, method, objective) for world in (1, 2, 4)}
    alone = rows(runs[1])
    assert len(alone) == 6
    for world in (2, 4):
        together = rows(runs[world])
        assert len(together) == len(alone)
        for one, many in zip(alone, together, strict=True):
            assert one["tokens"] == many["tokens"]
            assert one["train/scored_per_step"] == many["train/scored_per_step"]
            assert many["train/loss"] == pytest.approx(one["train/loss"], rel=1e-6)
            assert many["train/grad_norm"] == pytest.approx(one["train/grad_norm"], rel=1e-6 * (1 + 9 * one["step"]))
        name = "adapter/adapter_model.safetensors" if method == "lora" else "model/model.safetensors"
        weights = [load_file(run / name) for run in (runs[1], runs[world])]
        for key in weights[0]:
            torch.testing.assert_close(weights[0][key], weights[1][key], atol=1e-5, rtol=1e-4)


def test_ranks_fill_the_cache_of_frozen_layers_together(tmp_path, model, monkeypatch):
    data = write_records(tmp_path / "data.jsonl", "pair", 21)
    found = []
    for world, where in ((1, "disk"), (2, "disk"), (2, "memory")):
        folder = tmp_path / f"{world}-{where}"
        folder.mkdir()
        monkeypatch.setenv("TUNESMITH_HOME", str(folder / "home"))
        run = train(folder, world, model, data, "lora", "dpo", f"train.cache_trunk={where}", "model.adapter.last=1")
        found.append([row["train/loss"] for row in rows(run)])
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert found[2] == found[1]
    one, other = (next((tmp_path / name).glob("home/trunk/*/states.bin")) for name in ("1-disk", "2-disk"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.row("X11")
def test_x11_torchrun_starts_ranks_as_well(tmp_path, model):
    data = write_records(tmp_path / "data.jsonl", "sequence", 21)
    alone = rows(train(tmp_path / "alone", 1, model, data, "lora", "sft"))
    words = [str(model), str(data), str(tmp_path), "model.adapter=lora", "objective=sft", *SETTINGS, *FIXED]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.distributed.worker"]
    done = subprocess.run(
        [sys.executable, *command, *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [row["train/loss"] for row in rows(tmp_path / "ranks-2")]
    assert losses == pytest.approx([row["train/loss"] for row in alone], rel=1e-6)
