"""What a plan tells of guards, and the warnings it has for them."""

import numpy as np
import pytest
from tests.tiny import tiny_model_folder

from tunesmith.models.inventory import take_inventory, trainable
from tunesmith.planning.counting import Counted, SourceCount
from tunesmith.planning.guards import copies_bytes, guard_problems, told_guards
from tunesmith.recipe import load_recipe


def recipe_of(*words):
    return load_recipe(None, list(words), {}).recipe


def counted_of(own=90.0, drawn=10.0, pool=5.0):
    tokens = np.array([4])
    return Counted((SourceCount(90, own, own, tokens, tokens), SourceCount(5, pool, drawn, tokens, tokens)), None, 0.0)


@pytest.mark.parametrize(
    ("words", "rate", "clipping"),
    [
        ([], "0.0002 after 6 of 200 steps of warm-up, then cosine", "a norm of 1"),
        (["train.schedule.warmup=0", "train.clip_norm=0"], "0.0002, cosine, no warm-up", "none"),
        (
            [
                "train.schedule={name: linear, warmup: auto, warmup_shape: exponential}",
                "train.optimizer.beta2=0.95",
                "train.adaptive_clip.threshold=3",
            ],
            "0.0002 after 40 of 200 steps of exponential warm-up, then linear",
            "a norm of 1 and 3 deviations above the running mean norm, from step 26 on",
        ),
        (
            ["train.adaptive_clip.rule=percentile", "train.clip_norm=0"],
            "0.0002 after 6 of 200 steps of warm-up, then cosine",
            "the norm below which 10 % of the steps were",
        ),
    ],
)
def test_warm_up_and_clipping_are_told(words, rate, clipping):
    told = told_guards(recipe_of(*words), 200, counted_of())
    assert (told["rate"], told["clipping"]) == (rate, clipping)


def test_an_automatic_warmup_as_long_as_the_run_is_told_with_ways_out():
    words = ["train.schedule.warmup=auto"]
    (problem,) = guard_problems(recipe_of(*words), 300, counted_of(), 1.0)
    assert problem.code == "W380"
    assert "2,000 steps, and the run has 300" in problem.message
    for fix in problem.fixes:
        mended = recipe_of(*words, *(f"{key}={value}" for key, value in fix.set.items()))
        assert list(guard_problems(mended, 300, counted_of(), 1.0)) == []
    assert list(guard_problems(recipe_of(*words), 3000, counted_of(), 1.0)) == []


def test_general_data_is_counted_and_told_when_it_is_repeated():
    words = ["data.train=a.jsonl", "data.general.train=b.jsonl"]
    told = told_guards(recipe_of(*words), 200, counted_of())
    assert told["general"] == "10 of the examples of an epoch (10%), from 5"
    assert list(guard_problems(recipe_of(*words), 200, counted_of(), 2.0)) == []
    (problem,) = guard_problems(recipe_of(*words), 200, counted_of(), 4.0)
    assert problem.code == "W381"
    assert problem.fixes[1].set == {"data.general.share": 0.05}


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ([], lambda trained: 0),
        (["train.ema.decay=0.9"], lambda trained: 4 * trained.total),
        (["train.l2_to_start=1"], lambda trained: 0),  # of an update the start is 0
        (["train.l2_to_start=1", "model.adapter=full"], lambda trained: 4 * trained.total),
        (["train.l2_to_start=1", "model.adapter=dora"], lambda trained: 4 * trained.total),
        (["also=[kl_to_reference]"], lambda trained: 4 * 64 * 100),
        (["also=[kl_to_reference]", "model.adapter=full"], lambda trained: 4 * (64 * 100 + trained.total)),
    ],
)
def test_copies_of_weights_are_counted(tmp_path, words, size):
    inventory, recipe = take_inventory(tiny_model_folder(tmp_path / "model")), recipe_of(*words)
    trained = trainable(inventory, recipe.model.adapter)
    assert copies_bytes(recipe, inventory, trained, 4, 100.0) == size(trained)


def test_a_pull_and_an_average_are_told():
    told = told_guards(recipe_of("train.l2_to_start=5", "train.ema.decay=0.99"), 200, counted_of())
    assert told["pull"] == "5 to no update"
    assert told["average"] == "of the weights, each step keeping 0.99; it is what is used"
    assert told_guards(recipe_of("train.l2_to_start=5", "model.adapter=full"), 200, counted_of())["pull"].endswith(
        "start"
    )
