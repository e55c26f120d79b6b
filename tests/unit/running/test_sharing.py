"""Whole tiny runs whose records begin alike: the same losses as without sharing, fewer tokens, told and planned."""

import json
from pathlib import Path

import pytest
from tests.tiny import tiny_model_folder

from tunesmith.data.loader import Builder, OfflineSource
from tunesmith.data.prepared import prepare
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.distributed.mesh import Mesh
from tunesmith.plan import make_plan
from tunesmith.planning.sharing import dropout_rates, shares_prefixes
from tunesmith.recipe import Recipe, load_recipe
from tunesmith.run import RunResult, execute
from tunesmith.track.progress import make_progress
from tunesmith.track.run_dir import RunDir

SYSTEM = {"role": "system", "content": "You are a helpful assistant. " * 4}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


def records(path: Path, kind: str) -> Path:
    """Twenty-four records with one system prompt; neighbours answer one question."""
    rows = []
    for number in range(24):
        asked = [SYSTEM, {"role": "user", "content": f"What is the capital of France? {'Hello! ' * (number // 2)}"}]
        said = {"role": "assistant", "content": f"Paris. {'The moon. ' * (number % 5)}{number}"}
        other = {"role": "assistant", "content": f"{number}, the sea."}
        rows.append(
            {"messages": [*asked, said]}
            if kind == "sequence"
            else {"messages": [*asked, said], "label": number % 3 > 0}
            if kind == "feedback"
            else {"prompt": asked, "chosen": [said], "rejected": [other]}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe_of(folder: Path, model: Path, objective: str, *settings: str) -> Recipe:
    kind = {"sft": "sequence", "kto": "feedback"}.get(objective, "pair")
    words = [f"model.path={model}", f"data.train={records(folder / f'{kind}.jsonl', kind)}", f"objective={objective}"]
    words += ["train.sequences_per_step=8", "train.optimizer.lr=1e-3", "train.epochs=2"]
    return load_recipe(None, [*words, *settings], {}).recipe


def train(folder: Path, recipe: Recipe) -> tuple[RunResult, list[dict]]:
    run = RunDir.create(folder / "runs")
    with make_progress(quiet=True) as progress:
        result = execute(recipe, run, Mesh(), progress)
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return result, [row for row in rows if "train/loss" in row]


@pytest.mark.parametrize("objective", ["sft", "dpo", "kto"])
def test_switching_it_off_changes_no_loss(tmp_path, model, objective):
    (shared, rows), (apart, others) = (
        train(tmp_path, recipe_of(tmp_path, model, objective, f"data.share_prefixes={word}"))
        for word in ("true", "false")
    )
    assert [row["train/loss"] for row in rows] == pytest.approx([row["train/loss"] for row in others], abs=2e-5)
    norms = [row["train/grad_norm"] for row in rows]
    assert norms == pytest.approx([row["train/grad_norm"] for row in others], rel=1e-3)
    assert (shared.tokens, shared.scored_tokens) == (apart.tokens, apart.scored_tokens)
    assert shared.saved_tokens == sum(row["train/saved_per_step"] for row in rows) > 0.3 * shared.tokens
    assert apart.saved_tokens == 0


@pytest.mark.parametrize("setting", ["train.neftune_alpha=5", "model.adapter.dropout=0.1"])
def test_records_do_not_share_what_chance_is_drawn_for(tmp_path, model, setting):
    recipe = recipe_of(tmp_path, model, "sft", setting)
    assert not shares_prefixes(recipe, model)
    result, _ = train(tmp_path, recipe)
    assert result.saved_tokens == 0


def test_models_that_see_ahead_or_drop_states_do_not_share(tmp_path, model):
    config = json.loads((model / "config.json").read_text())
    recipe = recipe_of(tmp_path, model, "sft")
    assert shares_prefixes(recipe, model)
    reward = recipe_of(tmp_path, model, "reward")
    assert shares_prefixes(reward, model)
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    assert not shares_prefixes(reward, tmp_path)
    for changes in ({"resid_pdrop": 0.1}, {"text_config": {"hidden_dropout": 0.1}}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        assert not shares_prefixes(recipe, tmp_path)
    assert shares_prefixes(recipe_of(tmp_path, model, "dpo"), tmp_path)  # which switches dropout off
    assert list(dropout_rates({"a": 1, "b": {"attention_dropout": 0.2}, "classifier_dropout": None})) == [0.2]


def test_the_plan_says_what_is_saved(tmp_path, model):
    recipe = recipe_of(tmp_path, model, "sft")
    before = make_plan(recipe)
    result, _ = train(tmp_path, recipe)
    share = result.saved_tokens / result.tokens
    for plan in (before, make_plan(recipe)):  # from the records, and from the prepared data
        assert plan.steps.saved == pytest.approx(share, abs=0.05)
        assert plan.to_json()["data"]["saved_share"] == round(plan.steps.saved, 4)
    off = make_plan(recipe_of(tmp_path, model, "sft", "data.share_prefixes=false"))
    assert off.steps.saved == 0
    assert off.steps.largest > before.steps.largest
    assert off.seconds > before.seconds


@pytest.mark.parametrize("limit", [600, 4096])
def test_the_planned_microbatch_is_the_one_that_comes(tmp_path, model, limit):
    recipe = recipe_of(tmp_path, model, "sft", f"train.microbatch_tokens={limit}")
    prepared = prepare(recipe.data.train, recipe.data, load_tokenizer(model), None, recipe.task)
    source = OfflineSource(
        Builder(prepared, recipe.task, share=True), [1.0], sequences_per_step=8, tokens_per_step=None,
        microbatch_tokens=limit, seed=0,
    )  # fmt: skip
    batches = [batch for _ in range(source.steps_for(4)) for batch in source.next_step()]
    largest = max(len(batch.tokens) for batch in batches)
    assert largest <= limit
    assert make_plan(recipe).steps.largest == pytest.approx(largest, rel=0.15)


def test_several_ranks_save_less(tmp_path, model):
    recipe = recipe_of(tmp_path, model, "sft")
    alone, ranked = (make_plan(recipe, ranks=ranks).steps.saved for ranks in (1, 2))
    assert 0 < ranked < alone  # each rank computes the system prompt
