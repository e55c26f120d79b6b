"""Optimisers that contradict other settings are told with the change that ends it; variants load from every form."""

import pytest

from tunesmith.errors import TunesmithError
from tunesmith.recipe import Recipe, load_recipe, to_yaml
from tunesmith.train.optimizers import OPTIMIZERS, AdamW, GaLore


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.model_fields["name"].default)
def test_a_word_names_an_optimiser_and_the_file_says_the_same(kind, tmp_path):
    name = kind.model_fields["name"].default
    words = [f"train.optimizer={name}", "model.adapter=full", "train.schedule=constant"]
    recipe = load_recipe(None, words, {}).recipe
    assert type(recipe.train.optimizer) is kind
    file = tmp_path / "recipe.yaml"
    file.write_text(to_yaml(recipe))
    assert load_recipe(str(file), [], {}).recipe == recipe


def test_adamw_is_meant_where_no_name_is_given():
    assert type(load_recipe(None, ["train.optimizer.lr=1e-4"], {}).recipe.train.optimizer) is AdamW
    assert type(Recipe.model_validate({"train": {"optimizer": "galore"}}).train.optimizer) is GaLore


@pytest.mark.parametrize(
    ("words", "code", "mended"),
    [
        (["model.adapter=full", "train.optimizer.lr=1e-5", "train.optimizer.lr_ratio_b=16"], "E300",
         {"train.optimizer.lr_ratio_b": 1.0}),
        (["train.optimizer=galore"], "E301", {"model.adapter": "full"}),
        (["train.optimizer=apollo"], "E301", {"model.adapter": "full"}),
    ],
)  # fmt: skip
def test_what_contradicts_is_refused(words, code, mended):
    with pytest.raises(TunesmithError) as caught:
        load_recipe(None, words, {})
    assert caught.value.diagnostic.code == code
    assert caught.value.diagnostic.fixes[0].set == mended
    load_recipe(None, [*words, *(f"{key}={value}" for key, value in mended.items())], {})


def test_a_falling_rate_under_schedule_free_is_warned_of():
    found = load_recipe(None, ["train.optimizer=schedule_free"], {})
    assert [warning.code for warning in found.warnings] == ["W300"]
    assert not load_recipe(None, ["train.optimizer=schedule_free", "train.schedule=constant"], {}).warnings


def test_rates_are_judged_on_the_scale_of_the_optimiser():
    full = ["model.adapter=full", "train.optimizer=lion"]
    assert not load_recipe(None, [*full, "train.optimizer.lr=1e-5"], {}).warnings
    found = load_recipe(None, [*full, "train.optimizer.lr=5e-5"], {}).warnings
    assert [warning.code for warning in found] == ["W011"]
