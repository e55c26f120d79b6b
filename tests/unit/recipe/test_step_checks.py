"""Objectives that compare the records of a step refuse steps of one."""

import pytest

from tunesmith.errors import TunesmithError
from tunesmith.recipe import load_recipe


@pytest.mark.parametrize("objective", ["kto", "aot"])
def test_a_step_of_one_is_refused(objective):
    with pytest.raises(TunesmithError, match=rf"E014[\s\S]*{objective} compares the records of a step") as caught:
        load_recipe(None, [f"objective={objective}", "train.sequences_per_step=1"], {})
    assert caught.value.diagnostic.fixes[0].set == {"train.sequences_per_step": 16}


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective=kto", "train.sequences_per_step=2"],
        ["objective=kto", "train.tokens_per_step=512"],
        ["objective=dpo", "train.sequences_per_step=1"],
    ],
)
def test_other_steps_are_fine(overrides):
    load_recipe(None, overrides, {})


@pytest.mark.parametrize(
    ("words", "code", "mend"),
    [
        (["train.schedule.warmup=auto", "train.optimizer=sgd"], "E382", {"train.schedule.warmup": 0.03}),
        (
            ["train.adaptive_clip.rule=zscore", "train.optimizer.in_backward=true", "train.clip_norm=0"],
            "E381",
            {"train.adaptive_clip": None},
        ),
        (["train.ema.decay=0.9", "train.optimizer=schedule_free"], "E386", {"train.ema": None}),
        (["train.l2_to_start=1", "train.optimizer=schedule_free"], "E386", {"train.l2_to_start": 0.0}),
        (
            ["train.l2_to_start=1", "train.optimizer.in_backward=true", "train.clip_norm=0"],
            "E386",
            {"train.optimizer.in_backward": False},
        ),
        (
            ["also=[kl_to_reference]", "model.reference.path=starter"],
            "E387",
            {"model.reference.path": None, "model.reference.source": "start"},
        ),
        (
            ["also=[kl_to_reference]", "model.adapter.targets=[lm_head]", "model.reference.update_every=5"],
            "E387",
            {"model.reference.update_every": 0},
        ),
        (
            ["also=[kl_to_reference]", "model.adapter.targets=[lm_head]", "model.adapter_path=folder"],
            "E387",
            {"model.reference.source": "adapter_off"},
        ),
        (
            ["train.watch_layers=5", "train.optimizer.in_backward=true", "train.clip_norm=0"],
            "E388",
            {"train.watch_layers": 0},
        ),
        (["train.ema.decay=0.9", "train.optimizer.rounding=kahan"], "E389", {"train.optimizer.rounding": "masters"}),
        (
            ["train.l2_to_start=1", "model.adapter=lisa", "train.optimizer.lr=2e-5"],
            "E389",
            {"train.l2_to_start": 0.0},
        ),
        (["objective=dpo", "data.general.train=a.jsonl"], "E383", {"data.general.train": []}),
        (["objective=reward", "data.general.eval=a.jsonl"], "E384", {"data.general.eval": []}),
        (["train.early_stopping.watch=general"], "E385", {"train.early_stopping.watch": "eval"}),
        (
            ["train.early_stopping.watch=general", "data.general.eval=a.jsonl"],
            "E385",
            {"train.evaluate_every": 50},
        ),
    ],
)
def test_guards_that_cannot_work_are_refused_with_a_way_out(words, code, mend):
    with pytest.raises(TunesmithError) as caught:
        load_recipe(None, words, {})
    assert caught.value.diagnostic.code == code
    assert caught.value.diagnostic.fixes[0].set == mend
    others = ["data.eval=a.jsonl", "train.evaluate_every=50"]  # what early stopping needs besides
    load_recipe(
        None, [*words, *others, *(f"{key}={'' if value is None else value}" for key, value in mend.items())], {}
    )
