"""What a plan says of labels and ratings, and that its fixes mend it."""

import json

import numpy as np
import pytest
from tests.tiny import tiny_model_folder

from tunesmith.data.loader import Builder, OfflineSource
from tunesmith.data.mismatch import Mismatch
from tunesmith.data.prepared import prepare
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import DataError
from tunesmith.plan import make_plan
from tunesmith.planning.counting import count_data
from tunesmith.recipe import load_recipe


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))


def feedback(folder, good, bad):
    rows = [
        {"prompt": f"question {index}", "completion": f"answer {index}", "label": index < good}
        for index in range(good + bad)
    ]
    return written(folder, rows)


def pairs(folder, rated, unrated):
    rows = [
        {"prompt": f"question {index}", "chosen": "yes", "rejected": "no", "margin": 1.5 if index < rated else None}
        for index in range(rated + unrated)
    ]
    return written(folder, rows)


def written(folder, rows):
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_of(model, data, *overrides):
    return load_recipe(None, [f"model.path={model}", f"data.train={data}", *overrides], {}).recipe


def problem(model, data, code, *overrides):
    plan = make_plan(recipe_of(model, data, *overrides))
    return next((problem for problem in plan.problems if problem.code == code), None)


def fixed(found):
    return [f"{key}={value}" for key, value in found.fixes[0].set.items()]


@pytest.mark.parametrize("size", ["train.sequences_per_step=8", "train.tokens_per_step=128"])
def test_a_label_that_steps_will_lack_is_told_with_a_step_that_holds_it(tmp_path, model, size):
    data = feedback(tmp_path, 95, 5)
    found = problem(model, data, "W216", "objective=kto", size)
    assert "5.0% of the answers are bad" in found.message
    assert problem(model, data, "W216", "objective=kto", size, *fixed(found)) is None


@pytest.mark.parametrize(("good", "bad"), [(60, 20), (20, 60), (95, 5)])
@pytest.mark.parametrize("weights", [[], ["objective.lambda_good=0.4", "objective.lambda_bad=0.8"]])
def test_weights_that_do_not_balance_are_told_with_one_that_does(tmp_path, model, good, bad, weights):
    data = feedback(tmp_path, good, bad)
    found = problem(model, data, "W217", "objective=kto", *weights)
    assert problem(model, data, "W217", "objective=kto", *weights, *fixed(found)) is None


@pytest.mark.parametrize(("objective", "good"), [("kto", 22), ("bco_unpaired", 35)])
def test_a_balance_that_is_right_or_of_no_concern_is_not_told(tmp_path, model, objective, good):
    assert problem(model, feedback(tmp_path, good, 20), "W217", f"objective={objective}") is None


def test_pairs_without_ratings_are_told_where_ratings_are_used(tmp_path, model):
    data = pairs(tmp_path, 30, 10)
    assert problem(model, data, "W218", "objective=reward") is None
    found = problem(model, data, "W218", "objective=reward", "objective.rating_margin=1")
    assert "10 of 40 pairs are not rated" in found.message
    with pytest.raises(DataError, match="E224"):
        make_plan(recipe_of(model, pairs(tmp_path, 0, 40), "objective=reward", "objective.rating_margin=1"))
    rated = pairs(tmp_path, 40, 0)
    assert problem(model, rated, "W218", "objective=reward", "objective.rating_margin=1") is None


def test_what_only_some_records_say_is_a_problem_of_the_plan(tmp_path, model):
    assert problem(model, feedback(tmp_path, 400, 0), "E216", "objective=kto").level == "warning"


@pytest.mark.parametrize(("good", "bad"), [(9, 8), (17, 1), (30, 3), (10, 10), (27, 9), (9, 27), (64, 1)])
def test_steps_of_feedback_equal_those_of_the_loader(tmp_path, model, good, bad):
    for order in ("true", "false"):
        settings = recipe_of(
            model, feedback(tmp_path, good, bad), "objective=kto", "train.sequences_per_step=8", f"data.shuffle={order}"
        )
        total = make_plan(settings).steps.total
        stored = prepare(settings.data.train, settings.data, load_tokenizer(model), None, settings.task)
        source = OfflineSource(
            Builder(stored, settings.task),
            [1.0],
            sequences_per_step=8,
            tokens_per_step=None,
            microbatch_tokens=512,
            seed=0 if order == "true" else None,
        )
        assert total == source.steps_for(settings.train.epochs)


def test_memory_is_that_of_the_longer_of_an_answer_and_the_mismatched_one(tmp_path, model):
    """Long prompts with short answers and short prompts with long ones: joined, a long prompt has a long answer."""
    rows = [
        {
            "prompt": "sea " * (60 if index % 2 else 8) + str(index),
            "completion": "moon " * (4 if index % 2 else 50),
            "label": index % 3 > 0,
        }
        for index in range(200)
    ]
    rows[0] = {"prompt": "sea " * 80, "completion": "moon " * 50, "label": True}
    words = ["objective=kto", "train.sequences_per_step=8", "train.microbatch_tokens=10000"]
    settings = recipe_of(model, written(tmp_path, rows), *words, "data.share_prefixes=false")
    tokenizer = load_tokenizer(model)
    looked_at = count_data(settings.data, tokenizer, settings.task), make_plan(settings).steps
    stored = prepare(settings.data.train, settings.data, tokenizer, None, settings.task)
    counted = count_data(settings.data, tokenizer, settings.task), make_plan(settings).steps
    build = Builder(stored, settings.task, Mismatch(stored, 0))
    source = OfflineSource(build, [1.0], sequences_per_step=8, tokens_per_step=None, microbatch_tokens=10_000, seed=0)
    groups = [group for _ in range(source.steps_for(8)) for group in source.next_groups()]
    alone = max(stored.lengths[group].sum() for group in groups)
    for figures, steps in (looked_at, counted):
        drawn = figures.draw(4000, np.random.default_rng(0))
        assert drawn.mean(axis=0) == pytest.approx([stored.lengths.mean(), build.room.mean()], rel=0.03)
        assert drawn[:, 1].max() == build.room.max()
        assert steps.largest == pytest.approx(max(build.room[group].sum() for group in groups), rel=0.15)
        assert steps.largest > 1.1 * alone
        assert figures.prompt_share == pytest.approx(stored.prompt_lengths.sum() / stored.lengths.sum())
