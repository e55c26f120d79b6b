"""What a plan says of names and depths that a model does not have, and of folders to go on from."""

import pytest
from tests.tiny import tiny_model_folder

from tunesmith.models.adapter_config import DoraConfig, FreezeConfig, Ia3Config, LoraConfig, VeraConfig
from tunesmith.models.adapters import attach, save_adapter
from tunesmith.models.bottleneck_config import BottleneckConfig
from tunesmith.models.config import ModelConfig
from tunesmith.models.inventory import take_inventory
from tunesmith.models.load import load_base
from tunesmith.models.orthogonal_config import BoftConfig, OftConfig
from tunesmith.models.prompt_config import LlamaAdapterConfig, PrefixConfig, PromptConfig
from tunesmith.planning.adapters import adapter_problems
from tunesmith.recipe import Recipe, load_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


def found_for(folder, **model):
    return list(adapter_problems(Recipe(model=ModelConfig(**model)), take_inventory(folder)))


def saved(folder, settings, out):
    save_adapter(attach(load_base(folder, ModelConfig(path=str(folder))), settings), out, str(folder))
    return str(out)


CANNOT = {
    "E312": (LoraConfig(modules_to_save=("lm_haed",)), "model.adapter.modules_to_save", ("lm_head",)),
    "E312 of nothing near": (LoraConfig(modules_to_save=("lm_head", "zzz")), "model.adapter.modules_to_save", None),
    "E316": (FreezeConfig(last=1, names=("embed", "nrom")), "model.adapter.names", ("embed",)),
    "E334": (DoraConfig(last=3), "model.adapter.last", 2),
    "E334 of places": (BottleneckConfig(last=3), "model.adapter.last", 2),
    "E334 from below": (FreezeConfig(first=9), "model.adapter.first", 2),
    "W310": (LoraConfig(rank=40), "model.adapter.rank", 32),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_would_be_passed_over_is_told_with_what_works(folder, case):
    adapter, key, value = CANNOT[case]
    (problem,) = found_for(folder, adapter=adapter)
    assert (problem.code, problem.where.field) == (case[:4], key)
    changes = {name.rpartition(".")[2]: each for name, each in problem.fixes[0].set.items()}
    if value is not None:
        assert list(changes.values()) == [list(value) if isinstance(value, tuple) else value]
    assert found_for(folder, adapter=type(adapter).model_validate({**adapter.model_dump(), **changes})) == []


@pytest.mark.parametrize("names", [("lm_head",), ("embed_tokens", "layers.1.mlp"), ("norm",), ("self_attn",)])
def test_modules_by_any_name_that_they_have(folder, names):
    assert found_for(folder, adapter=LoraConfig(modules_to_save=names)) == []


KINDS = [
    *(LoraConfig(rank=2), DoraConfig(rank=2), Ia3Config(), VeraConfig(rank=4), OftConfig(block=8), BoftConfig(block=4)),
    *(BottleneckConfig(), PromptConfig(tokens=3), PrefixConfig(tokens=3), LlamaAdapterConfig(tokens=3)),
]


@pytest.mark.parametrize("settings", KINDS, ids=lambda one: one.word)
def test_an_adapter_of_another_model_is_refused_before_anything_is_loaded(folder, settings, tmp_path):
    path = saved(folder, settings, tmp_path / "adapter")
    assert found_for(folder, adapter=settings, adapter_path=path) == []
    narrow = tiny_model_folder(tmp_path / "narrow", hidden_size=48, intermediate_size=80)
    (problem,) = found_for(narrow, adapter=settings, adapter_path=path)
    assert (problem.code, problem.level) == ("E092", "error")
    assert problem.fixes[0].set == {"model.path": str(folder)}


def test_settings_that_the_folder_decides_are_told(folder, tmp_path):
    path = saved(folder, LoraConfig(rank=2, alpha=4, dropout=0.5), tmp_path / "adapter")
    given = LoraConfig(rank=3, alpha=4, dropout=0.25)
    (problem,) = found_for(folder, adapter=given, adapter_path=path)
    assert (problem.code, problem.level) == ("W313", "warning")
    assert problem.fixes[0].set == {"model.adapter.rank": 2, "model.adapter.dropout": 0.5}
    assert "rank 3, dropout 0.25" in problem.message
    assert found_for(folder, adapter=LoraConfig(), adapter_path=path) == []  # nobody asked for the usual ones


def test_an_adapted_head_to_go_on_from_cannot_be_its_own_whole_distribution(tmp_path):
    folder = tiny_model_folder(tmp_path / "model", tie_word_embeddings=False)
    path = saved(folder, LoraConfig(rank=2, targets=("q_proj", "lm_head")), tmp_path / "adapter")
    words = ["objective=[sft,kl_to_reference]", f"model.adapter_path={path}"]
    (problem,) = adapter_problems(load_recipe(None, words, {}).recipe, take_inventory(folder))
    assert problem.code == "E387"
    mended = [*words, *(f"{key}={value}" for key, value in problem.fixes[0].set.items())]
    assert list(adapter_problems(load_recipe(None, mended, {}).recipe, take_inventory(folder))) == []
