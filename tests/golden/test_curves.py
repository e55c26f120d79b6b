"""Tiny whole runs with pinned curves: a change of the numbers is a change of behaviour and must be meant."""

import json
from pathlib import Path

import pytest
from tests.tiny import tiny_model_folder

from tunesmith.distributed.mesh import Mesh
from tunesmith.recipe import load_recipe
from tunesmith.run import execute
from tunesmith.track.progress import make_progress
from tunesmith.track.run_dir import RunDir

CURVES = {
    "sft": [5.96865, 5.74418, 5.66415, 5.52802, 5.36865, 5.28563],
    "full": [5.96865, 5.51367, 5.13865, 4.66205, 4.22805, 4.0124],
}


def write_chats(path: Path) -> Path:
    rows = []
    for index in range(16):
        turns = [("user", f"What is {index} plus 2?"), ("assistant", f"The answer is {index + 2}.")]
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def curve(recipe: str, tmp_path: Path) -> list[float]:
    model = tiny_model_folder(tmp_path / "model")
    words = [f"model.path={model}", f"data.train={write_chats(tmp_path / 'chats.jsonl')}", "train.steps=6"]
    words += ["train.sequences_per_step=4", "train.optimizer.lr=5e-3"]
    run = RunDir.create(tmp_path / "runs")
    with make_progress(quiet=True) as progress:
        execute(load_recipe(recipe, words, {}).recipe, run, Mesh(), progress)
    return [json.loads(line)["train/loss"] for line in run.metrics_file.read_text().splitlines()]


@pytest.mark.parametrize("recipe", ["sft", "full"])
def test_curve_is_the_pinned_one(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    assert curve(recipe, tmp_path) == pytest.approx(CURVES[recipe], abs=2e-4)
