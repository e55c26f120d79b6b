"""Whole tiny runs of learned prompts: planned, resumed to the bit, compared, evaluated, sampled and not merged."""

import json
import math
import shutil

import pytest
from safetensors.torch import load_file
from tests.records import write_records
from tests.tiny import tiny_model_folder

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import ModelError
from tunesmith.export.huggingface import merge_run
from tunesmith.export.opening import open_model, reference_of
from tunesmith.models.adapters import trainable
from tunesmith.models.load import load_model
from tunesmith.models.reference import AdapterOff
from tunesmith.plan import make_plan
from tunesmith.recipe import load_recipe
from tunesmith.rollout.generator import Sampling, generate
from tunesmith.run import execute
from tunesmith.track.progress import make_progress
from tunesmith.track.run_dir import RunDir

METHODS = {
    "prompt": [],
    "p_tuning": ["model.adapter.width=16"],
    "lstm": ["model.adapter.method=p_tuning", "model.adapter.encoder=lstm", "model.adapter.width=8"],
    "prefix": [],
    "projected": ["model.adapter.method=prefix", "model.adapter.projection=true"],
    "llama_adapter": ["model.adapter.last=1"],
}


@pytest.fixture
def start(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    model = tiny_model_folder(tmp_path / "model")

    def run_in(folder: str, name: str, kind: str = "sequence", *words: str):
        data = write_records(tmp_path / f"{kind}.jsonl", kind, 12)
        method = [] if any("method" in word for word in METHODS[name]) else [f"model.adapter.method={name}"]
        settings = [
            f"model.path={model}",
            f"data.train={data}",
            "train.sequences_per_step=12",
            "train.optimizer.lr=1e-2",
        ]
        settings += ["train.steps=4", "train.checkpoint.every=2", *method, *METHODS[name], "model.adapter.tokens=5"]
        settings += [] if kind == "sequence" else ["objective=dpo"]
        recipe = load_recipe(None, [*settings, *words], {}).recipe
        path = tmp_path / "runs" / folder
        run = RunDir(path) if path.exists() else RunDir.create(tmp_path / "runs", folder)
        with make_progress(quiet=True) as progress:
            execute(recipe, run, Mesh(), progress)
        return run, recipe

    return run_in


def losses(run):
    found = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return [row["train/loss"] for row in found if "train/loss" in row]


@pytest.mark.parametrize("name", METHODS)
def test_a_run_learns_and_a_resume_is_the_same_to_the_bit(start, tmp_path, name):
    whole, recipe = start("whole", name)
    assert losses(whole)[-1] < losses(whole)[0]
    shutil.copytree(whole.path, tmp_path / "runs" / "halved")
    halved = RunDir(tmp_path / "runs" / "halved")
    shutil.rmtree(halved.checkpoints / "step-4")
    shutil.rmtree(halved.path / "adapter")
    start("halved", name)
    for folder in ("adapter", "checkpoints/step-4"):
        for path in (whole.path / folder).glob("*.safetensors"):
            one, other = load_file(path), load_file(halved.path / folder / path.name)
            assert one.keys() == other.keys()
            assert all(one[key].equal(other[key]) for key in one), path.name
    counted = make_plan(recipe).trained.total
    held = trainable(load_model(tmp_path / "model", recipe.model))
    assert counted == sum(parameter.numel() for parameter in held.values())


@pytest.mark.parametrize("name", ["prompt", "p_tuning", "prefix", "llama_adapter"])
def test_answers_are_compared_with_the_model_without_the_prompt(start, name):
    run, _ = start("pairs", name, "pair")
    begins = abs(losses(run)[0] - math.log(2)) < 1e-6
    assert begins == (name == "llama_adapter")
    assert losses(run)[-1] < losses(run)[0]
    assert isinstance(reference_of(open_model(str(run.path))), AdapterOff)


@pytest.mark.parametrize("name", METHODS)
def test_final_weights_and_checkpoints_answer_alike_and_are_not_merged(start, tmp_path, name):
    run, _ = start("whole", name)
    opened = [open_model(str(run.path), which=which) for which in ("final", "newest")]
    prompts = [[5, 9, 100], [17], list(range(20, 44))]
    answers = [generate(one.model, one.tokenizer, prompts, Sampling(12)) for one in opened]
    assert answers[0] == answers[1]
    with pytest.raises(ModelError, match="E314") as caught:
        merge_run(run.path, tmp_path / "merged")
    assert "every command takes the run" in str(caught.value.diagnostic.fixes)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("name", ["prompt", "p_tuning", "projected", "llama_adapter"])
def test_a_run_goes_on_from_a_folder(start, name):
    run, _ = start("first", name)
    again, recipe = start("second", name, "sequence", f"model.adapter_path={run.path / 'adapter'}")
    assert losses(again)[0] < losses(run)[0]
    assert make_plan(recipe).trained.total == sum(
        tensor.numel() for tensor in load_file(again.checkpoints / "step-4" / "weights.safetensors").values()
    )
