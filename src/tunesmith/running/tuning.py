"""What the method of a recipe does around the steps."""

from __future__ import annotations

from tunesmith.models.changing_config import LisaConfig
from tunesmith.recipe import Recipe
from tunesmith.train.lisa import Lisa
from tunesmith.train.tuning import Tuning


def build_tuning(recipe: Recipe) -> Tuning:
    adapter = recipe.model.adapter
    if isinstance(adapter, LisaConfig):
        return Lisa(adapter, recipe.train.seed)
    return Tuning()
