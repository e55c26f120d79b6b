"""What a plan says of checkpoints in the background and of rolling back."""

import pytest
from tests.tiny import tiny_model_folder

from tunesmith.models.inventory import take_inventory, trainable
from tunesmith.planning.safety import safety_problems, snapshot_bytes
from tunesmith.recipe import load_recipe

BACKGROUND = "train.checkpoint.in_background=true"


def recipe_of(*words):
    return load_recipe(None, list(words), {}).recipe


@pytest.mark.parametrize(
    ("words", "ranks", "code", "told"),
    [
        ([BACKGROUND, "train.optimizer.paging=auto"], 1, "E492", "paged cannot be copied"),
        ([BACKGROUND], 2, "W464", "2 ranks agree on every checkpoint"),
        (["train.stability.on_spike=rollback", "model.adapter=adalora"], 1, "E490", "adalora changes what is trained"),
        (["train.stability.on_spike=rollback", "model.adapter=lisa"], 1, "E490", "lisa changes what is trained"),
    ],
)
def test_what_does_not_go_together_is_told_with_fixes_that_mend_it(words, ranks, code, told):
    (problem,) = safety_problems(recipe_of(*words), ranks)
    assert problem.code == code
    assert told in problem.message
    for fix in problem.fixes:
        mended = recipe_of(*words, *(f"{key}={value}".lower() for key, value in fix.set.items()))
        assert list(safety_problems(mended, ranks)) == []


def test_what_goes_together_is_not_mentioned():
    assert list(safety_problems(recipe_of(BACKGROUND, "train.stability.on_spike=rollback"), 1)) == []
    assert list(safety_problems(recipe_of(), 4)) == []


def test_the_copy_is_counted(tmp_path):
    recipe = recipe_of(BACKGROUND, "model.adapter=full", "train.ema.decay=0.9")
    inventory = take_inventory(tiny_model_folder(tmp_path / "model"))
    trained = trainable(inventory, recipe.model.adapter)
    found = snapshot_bytes(recipe, inventory, trained, 2, "cpu")
    assert found == (2 + 4 + 8 + 4) * trained.total  # weights, masters, two moments, an average
    assert snapshot_bytes(recipe, inventory, trained, 4, "cpu") == (4 + 8 + 4) * trained.total
    assert snapshot_bytes(recipe_of("model.adapter=full"), inventory, trained, 2, "cpu") == 0
