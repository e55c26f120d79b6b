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
