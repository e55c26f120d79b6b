"""What a plan says of learned prompts: rows, places of the context, and what cannot work, with what can."""

import json

import pytest
from tests.tiny import tiny_model_folder

from tunesmith.errors import UsageError
from tunesmith.models.config import ModelConfig
from tunesmith.models.inventory import take_inventory
from tunesmith.models.prompt_config import LlamaAdapterConfig, PrefixConfig, PromptConfig, PTuningConfig
from tunesmith.plan import make_plan
from tunesmith.planning.adapters import adapter_problems
from tunesmith.recipe import Recipe, load_recipe

TEXT = "You are a helpful assistant."
CANNOT = {
    "E330": (PromptConfig(tokens=511), "llama", {}),
    "E330 of a prefix": (PrefixConfig(tokens=4000), "llama", {}),
    "E332": (PromptConfig(init="text", init_text=""), "llama", {}),
    "W330": (PrefixConfig(tokens=2, init="text", init_text=TEXT), "llama", {}),
    "E333": (LlamaAdapterConfig(), "qwen2", {}),
    "E333 of biases": (LlamaAdapterConfig(), "llama", {"attention_bias": True}),
    "E333 of narrow heads": (LlamaAdapterConfig(), "llama", {"head_dim": 8}),
    "E334": (LlamaAdapterConfig(last=3), "llama", {}),
}


def problems(adapter, inventory):
    return list(adapter_problems(Recipe(model=ModelConfig(adapter=adapter)), inventory))


@pytest.mark.parametrize("case", CANNOT)
def test_what_cannot_work_is_refused_with_what_can(case, tmp_path):
    adapter, architecture, settings = CANNOT[case]
    inventory = take_inventory(tiny_model_folder(tmp_path, architecture, **settings))
    (problem,) = problems(adapter, inventory)
    assert problem.code == case[:4]
    assert problem.level == ("warning" if case.startswith("W") else "error")
    (fix,) = problem.fixes
    told = [f"{key}={'' if value is None else value}" for key, value in fix.set.items()]
    changed = {key.rpartition(".")[2]: value for key, value in fix.set.items() if key != "train.optimizer.lr"}
    if "adapter" in changed:
        mended = load_recipe(None, told, {}).recipe.model.adapter
    else:
        mended = type(adapter).model_validate({**adapter.model_dump(), **changed})
    assert problems(mended, inventory) == []


@pytest.mark.parametrize("adapter", [PromptConfig(), PTuningConfig(), PrefixConfig(), LlamaAdapterConfig(last=2)])
def test_what_works_has_no_problem(adapter, tmp_path):
    assert problems(adapter, take_inventory(tiny_model_folder(tmp_path))) == []


CLASH = {
    "E331": ["model.adapter=prompt", "objective=reward"],
    "E332 without a text": ["model.adapter=prompt", "model.adapter.init=text"],
    "E332 with a text that nobody reads": ["model.adapter=prefix", "model.adapter.init_text=Be brief."],
    "E332 behind a network": ["model.adapter=prefix", "model.adapter.projection=true", "model.adapter.init=text"],
    "E014": ["model.adapter=p_tuning", "objective=dpo", "model.reference.source=start"],
}


@pytest.mark.parametrize("case", CLASH)
def test_contradictions_stop_before_anything_is_read(case):
    with pytest.raises(UsageError, match=case[:4]):
        load_recipe(None, [*CLASH[case], "data.train=none.jsonl"], {})


def plan_of(tmp_path, *words, **settings):
    model, data = tiny_model_folder(tmp_path / "model", **settings), tmp_path / "data.jsonl"
    lines = [{"prompt": f"number {index}?", "completion": f"it is {index * 7}"} for index in range(12)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return make_plan(load_recipe(None, [f"model.path={model}", f"data.train={data}", *words], {}).recipe)


def codes(plan):
    return {problem.code: problem for problem in plan.problems}


def test_learned_tokens_take_memory_and_places(tmp_path):
    few = plan_of(tmp_path, "model.adapter=prompt", "model.adapter.tokens=1", "train.optimizer.lr=3e-2")
    many = plan_of(tmp_path, "model.adapter=prompt", "model.adapter.tokens=401", "train.optimizer.lr=3e-2")
    assert many.trained.total == 401 * few.trained.total == 401 * 64
    assert many.memory.activations > 1.5 * few.memory.activations
    assert many.memory.adapters == 4 * many.trained.total
    assert "W182" not in codes(many)
    full = plan_of(tmp_path, "model.adapter=prompt", "model.adapter.tokens=508", "train.optimizer.lr=3e-2")
    assert codes(full)["W182"].fixes[0].set == {"data.max_length": 4}


@pytest.mark.parametrize(("method", "rate"), [("prompt", 2e-4), ("p_tuning", 1.0), ("prefix", 1e-5)])
def test_a_rate_of_another_method_is_told(tmp_path, method, rate):
    told = codes(plan_of(tmp_path, f"model.adapter={method}", f"train.optimizer.lr={rate}"))["W183"]
    proposed = told.fixes[0].set["train.optimizer.lr"]
    assert "W183" not in codes(plan_of(tmp_path, f"model.adapter={method}", f"train.optimizer.lr={proposed}"))


def test_the_trunk_is_not_kept_below_what_is_learned(tmp_path):
    told = codes(plan_of(tmp_path, "model.adapter=prompt", "train.cache_trunk=memory", "train.optimizer.lr=3e-2"))
    assert "E197" in told
    above = plan_of(tmp_path, "model.adapter=llama_adapter", "model.adapter.last=1", "train.cache_trunk=memory")
    assert "E197" not in codes(above)
