"""1, 2 and 4 ranks under torchrun: the same losses, gradient norms and final weights (fp32)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.records import write_records
from tests.tiny import tiny_model_folder

from tunesmith.objectives import OBJECTIVES

ROOT = Path(__file__).parents[2]


def launch(folder: Path, world: int, model: Path, data: Path, method: str, objective: str, *extra: str) -> Path:
    words = [str(model), str(data), str(folder), f"model.adapter={method}", "train.epochs=2"]
    words += [f"objective={objective}", *extra]
    words += [
        "train.sequences_per_step=8",
        "data.max_length=160",
        "train.microbatch_tokens=64",
        "train.optimizer.lr=1e-3",
    ]
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TUNESMITH_HOME": str(folder / "home")}
    done = subprocess.run(
        [sys.executable, *command, "-m", "tests.distributed.worker", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / f"ranks-{world}"


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


CASES = [("full", "sft"), ("lora", "sft"), ("full", "dpo"), ("lora", "kto"), ("lora", "aot"), ("lora", "reward")]


@pytest.mark.parametrize(("method", "objective"), CASES)
def test_ranks_give_the_same_losses_gradients_and_weights(tmp_path, method, objective):
    kind = next(each.kind for each in OBJECTIVES if each.model_fields["name"].default == objective)
    model, data = tiny_model_folder(tmp_path / "model"), write_records(tmp_path / "data.jsonl", kind, 21)
    runs = {world: launch(tmp_path, world, model, data, method, objective) for world in (1, 2, 4)}
    alone = rows(runs[1])
    assert len(alone) == 6
    for world in (2, 4):
        together = rows(runs[world])
        assert len(together) == len(alone)
        for one, many in zip(alone, together, strict=True):
            assert one["tokens"] == many["tokens"]
            assert many["train/loss"] == pytest.approx(one["train/loss"], rel=1e-6)
            assert many["train/grad_norm"] == pytest.approx(one["train/grad_norm"], rel=1e-6 * (1 + 9 * one["step"]))
        name = "adapter/adapter_model.safetensors" if method == "lora" else "model/model.safetensors"
        weights = [load_file(run / name) for run in (runs[1], runs[world])]
        for key in weights[0]:
            torch.testing.assert_close(weights[0][key], weights[1][key], atol=1e-5, rtol=1e-4)


def test_ranks_fill_the_cache_of_frozen_layers_together(tmp_path):
    model, data = tiny_model_folder(tmp_path / "model"), write_records(tmp_path / "data.jsonl", "pair", 21)
    found = []
    for world, where in ((1, "disk"), (2, "disk"), (2, "memory")):
        folder = tmp_path / f"{world}-{where}"
        folder.mkdir()
        run = launch(folder, world, model, data, "lora", "dpo", f"train.cache_trunk={where}", "model.adapter.last=1")
        found.append([row["train/loss"] for row in rows(run)])
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert found[2] == found[1]
    one, other = (next((tmp_path / name).glob("home/trunk/*/states.bin")) for name in ("1-disk", "2-disk"))
    assert one.read_bytes() == other.read_bytes()
