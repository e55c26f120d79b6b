"""What a recipe starts from: its files are looked for before its model is fetched, which may take minutes."""

from __future__ import annotations

from pathlib import Path

from tunesmith.data.sources import check_present
from tunesmith.models.cache import Progress
from tunesmith.models.inventory import Inventory, Trainable, trainable
from tunesmith.models.locate import locate
from tunesmith.recipe import Recipe


def trainable_of(recipe: Recipe, inventory: Inventory) -> Trainable:
    path = recipe.model.adapter_path
    return trainable(inventory, recipe.model.adapter, None if path is None else locate(path))


def find_inputs(recipe: Recipe, progress: Progress | None = None) -> Path:
    """The model's folder, fetched when it is not here; `progress` hears the phase and its share from 0 to 1.

    Raises DataError E041 for data that is not there, then what `locate` raises.
    """
    check_present([source for sources in recipe.data.sets().values() for source in sources] + [*recipe.evaluate.data])
    return locate(recipe.model.path, recipe.model.revision, progress)
