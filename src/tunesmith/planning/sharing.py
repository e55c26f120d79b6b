"""Whether records that begin alike may be computed together, and what that saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.models.safety import read_config
from tunesmith.recipe import Recipe


def shares_prefixes(recipe: Recipe, folder: Path) -> bool:
    """As the recipe says, where that is exact: no token sees a later one, and no chance is drawn per token.

    Losses that compare log-probabilities switch the model's dropout off.
    """
    noisy = recipe.train.neftune_alpha > 0 or recipe.model.adapter.drops > 0
    if noisy or not recipe.data.share_prefixes:
        return False
    config, _ = read_config(folder)
    if recipe.task.reads == "values" and is_encoder_type(config["model_type"]):
        return False
    return recipe.compares or not any(rate > 0 for rate in dropout_rates(config))


def dropout_rates(config: Mapping[str, Any]) -> Iterator[float]:
    """Every rate of dropout in a config.json, those of its parts included."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from dropout_rates(value)
        elif ("dropout" in name or name.endswith("pdrop")) and isinstance(value, int | float):
            yield float(value)


def is_encoder_type(model_type: str) -> bool:
    """Whether every token sees the whole sequence; only models that give values may be such."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
