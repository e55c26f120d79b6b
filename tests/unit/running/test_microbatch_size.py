"""Whole tiny runs of a model that counts as large: its microbatches are larger, and a resume accepts them."""

import json
from pathlib import Path

import pytest
import yaml
from tests.tiny import tiny_model_folder

from tunesmith.distributed.mesh import Mesh
from tunesmith.plan import make_plan
from tunesmith.recipe import load_recipe
from tunesmith.run import execute
from tunesmith.track.progress import make_progress
from tunesmith.track.run_dir import RunDir

SMALL = 64


@pytest.fixture(autouse=True)
def large_from_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tunesmith.train.config.MICROBATCH_TOKENS", {"cpu": SMALL})
    monkeypatch.setattr("tunesmith.train.config.LARGE_BODY", 1000)


def recipe_of(folder: Path, *settings: str):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Count to {number}."},
                {"role": "assistant", "content": "one two " * number},
            ]
        }
        for number in range(1, 17)
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = tiny_model_folder(folder / "model")
    words = [f"model.path={model}", f"data.train={folder / 'chats.jsonl'}", "train.sequences_per_step=8"]
    return load_recipe(None, [*words, "train.steps=4", *settings], {}).recipe


def train(recipe, run: RunDir) -> list[dict]:
    with make_progress(quiet=True) as progress:
        execute(recipe, run, Mesh(), progress)
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return [row for row in rows if "train/loss" in row]


def test_the_run_and_its_plan_have_the_microbatches_of_a_large_model(tmp_path):
    recipe = recipe_of(tmp_path)
    assert make_plan(recipe).steps.microbatches == 1
    losses = [row["train/loss"] for row in train(recipe, RunDir.create(tmp_path / "runs"))]
    named = recipe_of(tmp_path, "train.microbatch_tokens=2048")
    assert losses == [row["train/loss"] for row in train(named, RunDir.create(tmp_path / "runs"))]
    cut = recipe_of(tmp_path, f"train.microbatch_tokens={SMALL}")
    assert make_plan(cut).steps.microbatches > 1


def test_the_recipe_of_the_run_stays_what_was_asked_for_and_a_resume_accepts_it(tmp_path):
    recipe = recipe_of(tmp_path)
    run = RunDir.create(tmp_path / "runs")
    before = train(recipe, run)
    assert yaml.safe_load((run.path / "config.yaml").read_text())["train"]["microbatch_tokens"] is None
    assert train(recipe, run) == before
