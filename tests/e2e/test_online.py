"""Recipes with rounds are planned, killed, resumed, measured, compared and merged, through the command line."""

import json

import pytest
from tests.e2e.test_recipes import call, headline
from tests.records import write_records
from tests.tiny import tiny_model_folder

from tunesmith.configuring.shipped import shipped
from tunesmith.recipe import load_recipe

RECIPES = sorted(name for name, path in shipped().items() if load_recipe(str(path), [], {}).recipe.online is not None)


@pytest.mark.parametrize("recipe", RECIPES)
def test_rounds_are_killed_resumed_measured_compared_and_merged(tmp_path, recipe):
    kind = load_recipe(recipe, [], {}).recipe.objective.kind
    model = tiny_model_folder(tmp_path / "model", tie_word_embeddings=False, initializer_range=0.2)
    prompts = write_records(tmp_path / "prompts.jsonl", "sequence", 8)
    held_out = write_records(tmp_path / "held_out.jsonl", kind, 4, seed=1)
    chats = write_records(tmp_path / "chats.jsonl", "sequence", 4, seed=2)
    settings = [f"model.path={model}", f"data.train={prompts}", f"data.eval={held_out}", "run.name=r"]
    settings += ["online.rounds=2", "online.prompts=4", "online.sampling.answers=3", "online.sampling.max_new_tokens=6"]
    settings += ["online.label.rule=shorter", "online.label.unfinished=keep", "train.checkpoint.every=1"]
    settings += ["train.sequences_per_step=2"]
    plan = call(tmp_path, "plan", recipe, *settings, "--json")
    assert plan["steps"] == 2
    call(tmp_path, "train", recipe, *settings, code=-9, TUNESMITH_FAULT="train.step@step=2:kill")
    result = call(tmp_path, "runs", "resume", "r", "--json")
    assert result["steps"] == 4
    assert [found["round"] for found in result["rounds"]] == [0, 1]
    rows = [json.loads(line) for line in (tmp_path / "runs/r/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row and "eval/loss" in row] == [1, 2]
    shown = call(tmp_path, "runs", "show", "r", "--json")
    assert (shown["run"]["state"], shown["run"]["total"]) == ("finished", 2)
    words = ["--data", str(chats), "-m", "loss", "--json"]
    before = headline(call(tmp_path, "eval", "runs/r", *words)["chats"])
    call(tmp_path, "merge", "runs/r", "merged")
    after = headline(call(tmp_path, "eval", "merged", *words)["chats"])
    assert after == pytest.approx(before, rel=1e-4)
    duel = ["--against", str(model), "--data", str(chats), "--rule", "shorter", "--max-new-tokens", "6", "--json"]
    assert call(tmp_path, "eval", "runs/r", *duel)["rate"]["n"] == 4
