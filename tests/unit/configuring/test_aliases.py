"""Names of other tools lead to keys that exist."""

import pytest

from tunesmith.configuring.aliases import ALIASES, normal
from tunesmith.configuring.catalogue import catalogue, general_key, stored_schema
from tunesmith.errors import UsageError
from tunesmith.recipe import load_recipe


def test_there_are_many():
    assert len(ALIASES) >= 60


def test_every_alias_names_a_key_or_group_that_exists_or_says_why_not():
    known = catalogue(stored_schema())
    for name, alias in ALIASES.items():
        assert name == normal(name)
        if alias.key is None:
            assert alias.note, name
        else:
            assert any(key == alias.key or key.startswith(f"{alias.key}.") for key in known), (name, alias.key)


@pytest.mark.parametrize("word", ["lora+", "LoRA+", "loraplus", "lora-plus", "qlora"])
def test_words_for_methods_that_are_settings_here_lead_to_them(word):
    with pytest.raises(UsageError) as caught:
        load_recipe(None, [f"model.adapter={word}"], {})
    problem = caught.value.diagnostic
    assert problem.code == "E013"
    assert problem.where.field == "model.adapter.method" or "model.adapter" in str(problem.where)
    assert problem.evidence[0].startswith("QLoRA is LoRA" if word == "qlora" else "LoRA+ is LoRA")
    recipe = load_recipe(None, [f"{key}={value}" for key, value in problem.fixes[0].set.items()], {}).recipe
    assert recipe.model.adapter.method == "lora"
    assert recipe.train.optimizer.lr_ratio_b == (1.0 if word == "qlora" else 16.0)
    assert recipe.model.quantization.name == ("nf4" if word == "qlora" else "none")


def test_catalogue_has_type_default_range_and_text_of_every_key():
    known = catalogue(stored_schema())
    assert {"model.adapter.rank", "data.train.N.weight", "train.schedule.warmup", "run.report_to"} <= known.keys()
    rank = known["model.adapter.rank"]
    assert (rank.type, rank.default) == ("integer", "16; adalora 8; vera 256")
    assert rank.allowed == "from 1 to 4096 | from 1 to 16,384"
    plain = rank.of("lora")
    assert plain is not None
    assert (plain.default, plain.allowed, plain.variant) == ("16", "from 1 to 4096", "lora")
    assert known["train.optimizer.lr"].allowed == "above 0, at most 10"
    assert known["train.steps"].default == "empty"
    assert [key for key, setting in known.items() if not setting.text] == []


def test_general_key():
    known = catalogue(stored_schema())
    assert general_key(("data", "train", 3, "path"), known) == "data.train.N.path"
    assert general_key(("data", "train", 3, "columns", "prompt"), known) == "data.train.N.columns.NAME"


def test_the_words_of_a_union_are_all_told_even_where_one_is_part_of_another():
    told = catalogue(stored_schema())["model.adapter.method"].allowed.split(" | ")
    assert {"oft", "boft", "loftq", "lora", "rslora", "olora"} <= set(told)
