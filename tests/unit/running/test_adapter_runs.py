"""Runs of every kind of method go on to the bit, leave a folder, and answer from it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import tiny_model_folder
from tests.unit.models.test_adapter_laws import logprobs

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import ModelError
from tunesmith.export.huggingface import merge_run
from tunesmith.export.opening import open_model
from tunesmith.recipe import load_recipe
from tunesmith.run import execute
from tunesmith.track.progress import make_progress
from tunesmith.track.run_dir import RunDir

METHODS = {
    "bottleneck": ["model.adapter={method: bottleneck, kind: houlsby, reduction: 8}"],
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
