"""Contradictions about learned prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tunesmith.configuring.layers import Origin
from tunesmith.models.prompt_config import LearnedConfig, PrefixConfig, PromptConfig
from tunesmith.recipe.clash import Clash
from tunesmith.recipe.settings import Recipe

INIT, TEXT, METHOD = "model.adapter.init", "model.adapter.init_text", "model.adapter.method"


def prompts(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    adapter = recipe.model.adapter
    if not isinstance(adapter, LearnedConfig):
        return
    if recipe.task.reads == "values":
        message = (
            f"{recipe.objective.title} trains a model that gives values, and {adapter.title} is for language models"
        )
        changes = {"model.adapter": "lora", "train.optimizer.lr": 2e-4}
        yield Clash(message, (METHOD, "objective.name"), changes, "E331")
    settings, key = recipe.model.reference, "model.reference.source"
    fixed = settings.source == "start" and not settings.update_every and recipe.has_reference
    if fixed and not adapter.begins_as_base and recipe.model.adapter_path is None:
        message = f"the reference is the start, and {adapter.title} starts as tokens that say nothing"
        yield Clash(message, (key, METHOD), {key: "adapter_off"}, effect="compares with the model without the prompt")
    if isinstance(adapter, PromptConfig | PrefixConfig):
        yield from _beginning(adapter)


def _beginning(adapter: PromptConfig | PrefixConfig) -> Iterator[Clash]:
    if isinstance(adapter, PrefixConfig) and adapter.projection and (adapter.init == "text" or adapter.init_text):
        message = "a prefix that a network forms cannot begin as a text"
        yield Clash(message, (INIT, "model.adapter.projection"), {"model.adapter.projection": False}, "E332")
    elif adapter.init == "text" and not (adapter.init_text or "").strip():
        message = "the prompt is to begin as a text, and there is none"
        yield Clash(message, (INIT, TEXT), {INIT: "vocabulary"}, "E332", f'or {TEXT}="Answer briefly."')
    elif adapter.init != "text" and adapter.init_text is not None:
        message = f"the prompt has a text to begin as, but begins as {adapter.init}"
        yield Clash(message, (TEXT, INIT), {INIT: "text"}, "E332")
