"""What a new model cannot be: refused with a setting that mends it, which is one."""

import pytest

from tunesmith.configuring.catalogue import plain
from tunesmith.errors import UsageError
from tunesmith.models.fresh_config import ARCHITECTURES, FreshConfig
from tunesmith.recipe import load_recipe, to_yaml, with_absolute_paths

NEW = ("model.fresh.layers=2", "model.adapter=full")


def load(*settings):
    return load_recipe(None, list(settings), {})


def problems(*settings):
    """Every error, as code and what would mend it."""
    try:
        load(*settings)
    except UsageError as error:
        return [error.diagnostic, *error.others]
    return []


def check_refused(code, set_to, *settings):
    found = [each for each in problems(*settings) if each.code == code]
    assert [each.fixes[0].set for each in found] == [set_to]
    mended = [f"{key}={'' if value is None else plain(value)}" for key, value in set_to.items()]
    assert code not in [each.code for each in problems(*settings, *mended)]
    return found[0]


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({}, "llama"),
        ({"norms": "pre"}, "llama"),
        ({"qk_norm": True}, "qwen3"),
        ({"norms": "pre", "qk_norm": False}, "llama"),
        ({"norms": "sandwich"}, "gemma3"),
        ({"norms": "sandwich", "qk_norm": False}, "gemma2"),
        ({"norms": "post"}, "olmo2"),
        ({"norms": "post", "qk_norm": True}, "olmo2"),
        *(({"architecture": each.word}, each.word) for each in ARCHITECTURES),
        *(
            ({"architecture": each.word, "norms": each.norms, "qk_norm": each.qk_norm}, each.word)
            for each in ARCHITECTURES
        ),
    ],
)
def test_norms_choose_the_architecture(settings, word):
    assert FreshConfig.model_validate(settings).kind.word == word


@pytest.mark.parametrize(
    ("words", "set_to", "told"),
    [
        (
            ["model.fresh.norms=post", "model.fresh.qk_norm=false"],
            {"model.fresh.qk_norm": True},
            "no architecture has norms behind the halves of a layer and queries and keys without norms",
        ),
        (
            ["model.fresh.architecture=llama", "model.fresh.norms=sandwich"],
            {"model.fresh.architecture": "gemma3"},
            "llama does not have norms before and behind the halves of a layer",
        ),
        (
            ["model.fresh.architecture=olmo2", "model.fresh.norms=sandwich", "model.fresh.qk_norm=false"],
            {"model.fresh.architecture": "gemma2"},
            "olmo2 does not have norms before and behind the halves of a layer and queries and keys without norms",
        ),
        (
            ["model.fresh.architecture=qwen3", "model.fresh.qk_norm=false"],
            {"model.fresh.architecture": "llama"},
            "qwen3 does not have queries and keys without norms",
        ),
        (
            ["model.fresh.architecture=llama", "model.fresh.norms=post", "model.fresh.qk_norm=false"],
            {"model.fresh.architecture": "olmo2", "model.fresh.qk_norm": True},
            "llama does not have norms behind",
        ),
    ],
)
def test_what_no_architecture_has_is_refused_and_the_nearest_named(words, set_to, told):
    problem = check_refused("E390", set_to, *NEW, *words)
    assert told in problem.message
    assert "the nearest there is" in str(problem.fixes[0].effect)


def test_an_architecture_that_is_named_above_a_file_decides(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("model:\n  fresh: {norms: pre, qk_norm: false}\n  adapter: full\n")
    with pytest.raises(UsageError) as caught:
        load_recipe(str(file), ["model.fresh.architecture=olmo2"], {})
    (fix,) = caught.value.diagnostic.fixes
    assert fix.set == {"model.fresh.norms": "post", "model.fresh.qk_norm": True}
    words = [f"{key}={plain(value)}" for key, value in fix.set.items()]
    mended = load_recipe(str(file), ["model.fresh.architecture=olmo2", *words], {}).recipe
    assert mended.model.named == "fresh-olmo2"


@pytest.mark.parametrize(
    ("words", "set_to"),
    [
        (["model.fresh.hidden=640", "model.fresh.heads=12"], {"model.fresh.heads": 10}),
        (["model.fresh.heads=12", "model.fresh.kv_heads=5"], {"model.fresh.kv_heads": 4}),
        (["model.fresh.heads=2", "model.fresh.kv_heads=8"], {"model.fresh.kv_heads": 2}),
        (["model.fresh.head_dim=33"], {"model.fresh.head_dim": 34}),
        (["model.fresh.hidden=20", "model.fresh.heads=4"], {"model.fresh.head_dim": 6}),
    ],
)
def test_sizes_that_do_not_go_into_one_another(words, set_to):
    check_refused("E391", set_to, *NEW, *words)


@pytest.mark.parametrize(
    "method",
    ["lora", "dora", "ia3", "prompt", "bottleneck", "bitfit", "norms", "lisa", "{method: freeze, last: 1}"],
)
def test_every_weight_is_trained(method):
    check_refused("E392", {"model.adapter": "full"}, "model.fresh.layers=2", f"model.adapter={method}")


@pytest.mark.parametrize("objective", ["dpo", "kto", "simpo", "reward", "classify"])
def test_judgements_need_a_model_that_writes(objective):
    names = [each for each in problems(*NEW, f"objective={objective}") if each.code == "E393"]
    assert [each.fixes[0].set for each in names] == [{"objective": "sft"}]


def test_a_random_reference_is_refused():
    check_refused("E393", {"also": []}, *NEW, "also=[kl_to_reference]")


def test_rounds_of_own_answers_are_refused():
    check_refused("E393", {"online": None}, *NEW, "online.rounds=2", "online.label.rule=exact_match")


@pytest.mark.parametrize(
    ("setting", "set_to"),
    [
        ("model.path=other", {"model.path": "starter"}),
        ("model.revision=main", {"model.revision": None}),
        ("model.adapter_path=adapter", {"model.adapter_path": None}),
        ("model.merged_adapters=[adapter]", {"model.merged_adapters": []}),
        ("model.new_tokens=[<|call|>]", {"model.new_tokens": []}),
        ("model.base_products=int8", {"model.base_products": "exact"}),
        ("model.quantization=nf4", {"model.quantization": "none"}),
    ],
)
def test_settings_about_weights_that_are_there(setting, set_to):
    check_refused("E394", set_to, *NEW, setting)


@pytest.mark.parametrize("norms", ["pre", "sandwich", "post"])
def test_tied_embeddings_begin_small(norms):
    tied = [*NEW, "model.fresh.tied_embeddings=true", f"model.fresh.norms={norms}"]
    check_refused("E395", {"model.fresh.tied_embeddings": False}, *tied)
    assert problems(*tied, "model.fresh.embedding=plain") == []


def test_a_rate_from_scratch_is_no_rate_of_lora():
    loaded = load(*NEW, "train.optimizer.lr=1e-3")
    assert loaded.warnings == ()
    assert [each.code for each in load("model.adapter=full", "train.optimizer.lr=1e-3").warnings] == ["W011"]


def test_the_recipe_of_a_run_says_seed_and_tokenizer_in_full(tmp_path, monkeypatch):
    (tmp_path / "tok").mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = with_absolute_paths(load(*NEW, "model.fresh.tokenizer=tok", "train.seed=11").recipe)
    assert recipe.model.fresh is not None
    assert (recipe.model.fresh.seed, recipe.model.fresh.tokenizer) == (11, str(tmp_path / "tok"))
    (tmp_path / "r.yaml").write_text(to_yaml(recipe))
    again = load_recipe(str(tmp_path / "r.yaml"), ["train.seed=12"], {}).recipe
    assert with_absolute_paths(again).model == recipe.model
    assert recipe.model.named == "fresh-llama"
    assert load().recipe.model.named == "starter"
