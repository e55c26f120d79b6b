"""What the method of a recipe does around the steps."""

from __future__ import annotations

from peft import PeftModel
from torch import nn

from tunesmith.errors import UsageError
from tunesmith.models.adalora_config import AdaloraConfig
from tunesmith.models.adapters.adalora import tell_phases
from tunesmith.models.changing_config import LisaConfig
from tunesmith.recipe import Recipe
from tunesmith.recipe.adalora_checks import without_room
from tunesmith.train.adalora import Adalora
from tunesmith.train.lisa import Lisa
from tunesmith.train.tuning import Tuning


def build_tuning(recipe: Recipe, model: nn.Module, total: int) -> Tuning:
    """For a run of `total` steps. Raises UsageError E355 where they have no room for what the method does."""
    adapter = recipe.model.adapter
    if isinstance(adapter, LisaConfig):
        return Lisa(adapter, recipe.train.seed)
    if isinstance(adapter, AdaloraConfig):
        problem = without_room(adapter, total)
        if problem is not None:
            raise UsageError(problem.code, problem.message, where=problem.where, fixes=problem.fixes)
        assert isinstance(model, PeftModel)
        tell_phases(model, *adapter.phases(total), total)
        return Adalora(adapter, total)
    return Tuning()
