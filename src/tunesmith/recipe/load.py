"""A recipe from a file, the environment and key=value: each value checked, with its origin."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.configuring.layers import DEFAULT, Layers, Origin, dotted
from tunesmith.configuring.load import check, drop_unknown, leaves
from tunesmith.configuring.problems import usage_error
from tunesmith.configuring.reader import read_file
from tunesmith.configuring.shipped import find_recipe
from tunesmith.errors import Diagnostic
from tunesmith.recipe.checks import contradictions
from tunesmith.recipe.gone import is_of_run, told_gone
from tunesmith.recipe.settings import UNIONS, Recipe, expand, follow


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checked recipe, the origin of each leaf that was set, and warnings to print."""

    recipe: Recipe
    origins: dict[str, Origin]
    file: Path | None = None
    warnings: tuple[Diagnostic, ...] = ()

    def values(self) -> list[tuple[str, Any, Origin]]:
        """Every leaf with its value and origin, defaults included."""
        return [
            (dotted(key), value, self.origins.get(dotted(key), DEFAULT))
            for key, value in leaves(self.recipe.model_dump(mode="json"))
        ]


def load_recipe(
    path: Path | str | None, overrides: Sequence[str] = (), environment: Mapping[str, str] = os.environ
) -> Loaded:
    """Defaults < file < environment (`TUNESMITH__TRAIN__STEPS=20`) < `key=value`; `path` may name a shipped recipe.

    What a run keeps of its own may be older than this version: settings that there are no more are a warning, W553.
    Raises UsageError with file, line and field for every fault, Unsafe for a file that is an attack.
    """
    layers = Layers(expand, follow, UNIONS)
    file = None if path is None else find_recipe(str(path))
    if file is not None:
        layers.add_file(read_file(file), str(file))
    layers.add_environment(environment)
    for override in overrides:
        layers.add_override(override)
    gone = drop_unknown(Recipe, layers) if file is not None and is_of_run(file) else {}
    recipe = check(Recipe, layers)
    origins = {dotted(key): layers.origin(key) for key, _ in leaves(layers.value)}
    found = contradictions(recipe, origins, str(path or ""))
    errors = [diagnostic for diagnostic in found if diagnostic.level == "error"]
    if errors:
        raise usage_error(errors)
    old = [] if file is None else told_gone(gone, file)
    return Loaded(recipe, origins, file, (*old, *found))
