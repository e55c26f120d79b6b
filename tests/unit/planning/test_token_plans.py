"""What a plan counts for new tokens, and which settings it refuses beside them."""

import pytest
from tests.tiny import tiny_model_folder

from tunesmith.errors import TunesmithError
from tunesmith.models.adapters import trainable
from tunesmith.models.load import load_model
from tunesmith.models.save import save_weights
from tunesmith.planning.adapters import adapter_problems
from tunesmith.planning.inputs import inventory_of, trainable_of
from tunesmith.planning.memory import head_bytes
from tunesmith.recipe import load_recipe

NEW = "model.new_tokens=[<|call|>,<note>]"


def recipe_of(folder, *words):
    return load_recipe("sft", [f"model.path={folder}", "data.train=none.jsonl", NEW, *words]).recipe


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": False}, {"vocab_size": 512}], ids=str)
def test_rows_are_counted_as_they_are_trained(tmp_path, settings, method):
    folder = tiny_model_folder(tmp_path / "model", **settings)
    recipe = recipe_of(folder, f"model.adapter={method}")
    model, inventory = load_model(folder, recipe.model), inventory_of(recipe, folder)
    counted, held = trainable_of(recipe, inventory), trainable(model)
    assert counted.total == sum(parameter.numel() for parameter in held.values())
    assert inventory.total == sum(one.numel() for one in model.parameters()) - counted.total
    assert (counted.rows, counted.lowest_layer) == (2, 0)
    assert inventory.vocabulary == model.get_base_model().config.vocab_size
    assert head_bytes(inventory, counted, 4, 512) > 0
    save_weights(model, tmp_path, folder, new=recipe.model.added)
    again = recipe_of(folder, f"model.adapter={method}", f"model.adapter_path={tmp_path / 'adapter'}")
    assert trainable_of(again, inventory).total == counted.total
    assert list(adapter_problems(again, inventory)) == []
    other = again.model_copy(update={"model": again.model.model_copy(update={"new_tokens": ("<note>",)})})
    (problem,) = adapter_problems(other, inventory)
    assert (problem.code, problem.fixes[0].set) == ("E339", {"model.new_tokens": ["<|call|>", "<note>"]})
    below = recipe_of(folder, f"model.merged_adapters=[{tmp_path / 'adapter'}]")
    assert [problem.code for problem in adapter_problems(below, inventory)] == ["E339"]


def test_a_head_with_a_bias_is_refused(tmp_path):
    folder = tiny_model_folder(tmp_path, "phi", tie_word_embeddings=False)
    recipe = recipe_of(folder)
    assert [problem.code for problem in adapter_problems(recipe, inventory_of(recipe, folder))] == ["E338"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["model.new_tokens=[a,' b',a]"], "E336"),
        (["model.adapter=full", "train.optimizer.lr=1e-5"], "E337"),
        (["model.adapter=pissa"], "E337"),
        (["train.cache_trunk=disk"], "E338"),
        (["model.adapter.targets=[q_proj,lm_head]"], "E338"),
        (["model.adapter.modules_to_save=[embed_tokens]"], "E338"),
    ],
)
def test_what_does_not_go_with_them_is_refused_with_a_way_out(tmp_path, words, code):
    folder = tiny_model_folder(tmp_path)
    with pytest.raises(TunesmithError, match=code) as caught:
        recipe_of(folder, *words)
    fix = caught.value.diagnostic.fixes[0].set
    recipe_of(folder, *words, *(f"{key}={told(value)}" for key, value in fix.items()))


def told(value):
    return f"[{','.join(value)}]" if isinstance(value, list) else value
