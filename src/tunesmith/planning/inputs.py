"""What a recipe starts from: its files are looked for before its model is fetched, which may take minutes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from tunesmith.data.sources import check_present
from tunesmith.models.cache import Progress
from tunesmith.models.inventory import Inventory, Trainable, take_inventory, trainable
from tunesmith.models.locate import locate
from tunesmith.models.safety import read_config
from tunesmith.planning.tokens import with_new_tokens, with_trained_rows
from tunesmith.recipe import Recipe


def trainable_of(recipe: Recipe, inventory: Inventory) -> Trainable:
    path = recipe.model.adapter_path
    found = trainable(inventory, recipe.model.adapter, None if path is None else locate(path))
    return with_trained_rows(found, recipe, inventory)


def inventory_of(recipe: Recipe, folder: Path, outputs: int = 0) -> Inventory:
    """The model as it is trained, with the rows that new tokens need.

    Raises ModelError E510 for an architecture that could not be built later, and E335.
    """
    check_architecture(folder)
    if recipe.model.fresh is not None:
        from tunesmith.models.blueprint import described

        return take_inventory(folder, outputs, described(folder))
    return with_new_tokens(take_inventory(folder, outputs), recipe, folder)


def check_architecture(folder: Path) -> None:
    """Raise ModelError E510 when transformers knows no such model; only a name that is not in its lists imports it."""
    config, _ = read_config(folder)
    package = find_spec("transformers")
    lists = Path(str(package and package.origin)).parent.glob("models/auto/*.py")
    if not any(f'"{config["model_type"]}"' in file.read_text(encoding="utf-8") for file in lists):
        from tunesmith.models.architecture import build_config

        build_config(config, folder)


def find_inputs(recipe: Recipe, progress: Progress | None = None) -> Path:
    """The model's folder, fetched when it is not here; `progress` hears the phase and its share from 0 to 1.

    That of a new model holds no weights yet. Raises DataError E041 for data that is not there, then what `locate` and
    `blueprint` raise.
    """
    check_present([source for sources in recipe.data.sets().values() for source in sources] + [*recipe.evaluate.data])
    if recipe.model.fresh is not None:
        from tunesmith.models.blueprint import blueprint

        return blueprint(recipe.model.fresh, progress)
    return locate(recipe.model.path, recipe.model.revision, progress)
