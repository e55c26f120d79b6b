"""Every shipped recipe trains, is killed, resumes, evaluates, merges and reloads, through the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tiny import tiny_model_folder

from tunesmith.configuring.shipped import shipped

RECIPES = sorted(shipped())


def call(folder: Path, *words: str, code: int = 0, **variables: str) -> dict:
    """Run the command and return the JSON object it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TUNESMITH_HOME": str(folder / "home"), **variables}
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout) if done.stdout.startswith("{") else {}


def write_chats(path: Path, count: int) -> Path:
    rows = []
    for index in range(count):
        turns = [("user", f"Say {index}"), ("assistant", f'{{"said": {index}}}')]
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_trains_is_killed_resumes_evaluates_merges_and_reloads(tmp_path, recipe):
    model = tiny_model_folder(tmp_path / "model")
    train, test = write_chats(tmp_path / "train.jsonl", 24), write_chats(tmp_path / "test.jsonl", 4)
    settings = [f"model.path={model}", f"data.train={train}", f"data.eval={test}", "train.steps=3"]
    settings += ["train.sequences_per_step=4", "train.checkpoint.every=1", "run.name=r", "evaluate.max_new_tokens=8"]
    plan = call(tmp_path, "plan", recipe, *settings, "--json")
    assert plan["steps"] == 3
    assert plan["parameters"]["trainable"] > 0
    call(tmp_path, "train", recipe, *settings, code=-9, TUNESMITH_FAULT="train.step@step=3:kill")
    result = call(tmp_path, "runs", "resume", "r", "--json")
    assert result["steps"] == 3
    steps = [json.loads(line) for line in (tmp_path / "runs/r/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "train/loss" in row] == [1, 2, 3]
    assert any("eval/loss" in row for row in steps)
    scores = call(tmp_path, "eval", "runs/r", "--data", str(test), "--metrics", "loss,valid_json,rouge_l", "--json")
    assert scores["test"]["loss"]["n"] == 4
    if "adapter" in {path.name for path in (tmp_path / "runs/r").iterdir()}:
        call(tmp_path, "merge", "runs/r", "merged")
        merged = call(tmp_path, "eval", "merged", "--data", str(test), "--metrics", "loss", "--json")
        assert merged["test"]["loss"]["value"] == pytest.approx(scores["test"]["loss"]["value"], rel=1e-4)
        assert (tmp_path / "merged" / "README.md").exists()


def test_bad_records_are_skipped_from_plan_to_chat_when_asked(tmp_path):
    model = tiny_model_folder(tmp_path / "model")
    data = write_chats(tmp_path / "train.jsonl", 8)
    data.write_text(data.read_text() + '{"messages": [{"role": "user", "content": "no answer"}]}\n')
    settings = [f"model.path={model}", f"data.train={data}", "train.steps=1"]
    call(tmp_path, "plan", "sft", *settings, "--json", code=4)
    settings.append("data.on_bad=skip")
    assert call(tmp_path, "plan", "sft", *settings, "--json")["data"]["records"] == 8
    call(tmp_path, "train", "sft", *settings, "--yes", "--json")
    scores = call(tmp_path, "eval", "last", "--data", str(write_chats(tmp_path / "t.jsonl", 2)), "-m", "loss", "--json")
    assert scores["t"]["loss"]["n"] == 2
