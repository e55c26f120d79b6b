"""Every shipped recipe trains, is killed, resumes, evaluates, merges and reloads, through the command line."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.records import write_records
from tests.tiny import tiny_model_folder

from tunesmith.configuring.shipped import shipped
from tunesmith.objectives import Objective
from tunesmith.recipe import load_recipe

TINY = {  # for matrices of a tiny model, and to make one
    "galore": ["train.optimizer.rank=8", "train.optimizer.every=2"],
    "from-scratch": [f"model.fresh.{size}" for size in ("layers=2", "hidden=64", "heads=4", "kv_heads=2")],
}
RECIPES = sorted(name for name, path in shipped().items() if load_recipe(str(path), [], {}).recipe.online is None)


def call(folder: Path, *words: str, code: int = 0, **variables: str) -> dict:
    """Run the command and return the JSON object it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TUNESMITH_HOME": str(folder / "home"), **variables}
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout) if done.stdout.startswith("{") else {}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_trains_is_killed_resumes_evaluates_merges_and_reloads(tmp_path, recipe):
    loaded = load_recipe(str(shipped()[recipe]), [], {}).recipe
    objective, model = loaded.objective, tiny_model_folder(tmp_path / "model")
    source = "model.path" if loaded.model.fresh is None else "model.fresh.tokenizer"
    train = write_records(tmp_path / "train.jsonl", objective.kind, 24)
    test = write_records(tmp_path / "test.jsonl", objective.kind, 6, seed=1)
    settings = [f"{source}={model}", f"data.train={train}", f"data.eval={test}", "train.steps=3", "train.epochs=1"]
    settings += ["train.sequences_per_step=4", "train.checkpoint.every=1", "run.name=r", "evaluate.max_new_tokens=8"]
    settings += TINY.get(recipe, [])
    plan = call(tmp_path, "plan", recipe, *settings, "--json")
    assert plan["steps"] == 3
    assert plan["parameters"]["trainable"] > 0
    call(tmp_path, "train", recipe, *settings, code=-9, TUNESMITH_FAULT="train.step@step=3:kill")
    result = call(tmp_path, "runs", "resume", "r", "--json")
    assert result["steps"] == 3
    steps = [json.loads(line) for line in (tmp_path / "runs/r/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "train/loss" in row] == [1, 2, 3]
    assert any("eval/loss" in row for row in steps)
    assert call(tmp_path, "runs", "show", "r", "--json")["run"]["state"] == "finished"
    check_scores(tmp_path, objective, test)


def check_scores(folder: Path, objective: Objective, test: Path) -> None:
    """The run and what is merged from it are measured the same."""
    words = [] if objective.reads == "values" else ["-m", "loss,valid_json,rouge_l"]
    if objective.reads == "logprobs" and objective.kind != "sequence":
        test = write_records(folder / "chats.jsonl", "sequence", 4)
    before = headline(call(folder, "eval", "runs/r", "--data", str(test), *words, "--json")[test.stem])
    assert before
    assert all(map(math.isfinite, before.values()))
    if not (folder / "runs/r/adapter").exists():
        return
    if is_prompt(folder / "runs/r/adapter"):
        call(folder, "merge", "runs/r", "merged", code=4)  # no change of weights
        return
    call(folder, "merge", "runs/r", "merged")
    after = headline(call(folder, "eval", "merged", "--data", str(test), *words, "--json")[test.stem])
    assert after == pytest.approx(before, rel=1e-4, abs=1e-4)
    assert (folder / "merged" / "README.md").exists()


def is_prompt(adapter: Path) -> bool:
    return "num_virtual_tokens" in json.loads((adapter / "adapter_config.json").read_text())


def headline(scores: dict) -> dict[str, float]:
    """The scores with an interval; tables of classes and bins aside."""
    return {name: score["value"] for name, score in scores.items() if isinstance(score, dict) and "value" in score}


def test_bad_records_are_skipped_from_plan_to_chat_when_asked(tmp_path):
    model = tiny_model_folder(tmp_path / "model")
    data = write_records(tmp_path / "train.jsonl", "sequence", 8)
    data.write_text(data.read_text() + '{"messages": [{"role": "user", "content": "no answer"}]}\n')
    settings = [f"model.path={model}", f"data.train={data}", "train.steps=1"]
    call(tmp_path, "plan", "sft", *settings, "--json", code=4)
    settings.append("data.on_bad=skip")
    assert call(tmp_path, "plan", "sft", *settings, "--json")["data"]["records"] == 8
    call(tmp_path, "train", "sft", *settings, "--yes", "--json")
    scores = call(
        tmp_path,
        "eval",
        "last",
        "--data",
        str(write_records(tmp_path / "t.jsonl", "sequence", 2)),
        "-m",
        "loss",
        "--json",
    )
    assert scores["t"]["loss"]["n"] == 2
