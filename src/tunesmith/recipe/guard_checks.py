"""What guards against forgetting need of the rest of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tunesmith.configuring.layers import Origin
from tunesmith.recipe.clash import Clash
from tunesmith.recipe.objective_checks import NAMES
from tunesmith.recipe.settings import Recipe


def general_data(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """General data is mixed into single answers and texts; its loss is that of a language model."""
    general, key = recipe.data.general, "data.general.train"
    if general.train and recipe.task.kind != "sequence":
        message = f"general data is single answers or texts, but {recipe.objective.title} learns from "
        effect = "or measure them: data.general.eval=FILE"
        yield Clash(message + NAMES[recipe.task.kind], (key, "objective.name"), {key: []}, "E383", effect)
    if general.eval and recipe.task.reads == "values":
        message = f"the loss on general data is one of next tokens, and {recipe.objective.title} trains another head"
        key = "data.general.eval"
        yield Clash(message, (key, "objective.name"), {key: []}, "E384")


def watched(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """Early stopping on general data needs such data, and more than one look at it."""
    train, key = recipe.train, "train.early_stopping.watch"
    if train.early_stopping is None or train.early_stopping.watch != "general":
        return
    if not recipe.data.general.eval:
        message = "early stopping watches the loss on general data, but there is none held out"
        yield Clash(message, (key, "data.general.eval"), {key: "eval"}, "E385", "or give data.general.eval=FILE")
    elif train.evaluate_every == 0:
        message = "early stopping watches the loss on general data, but it is measured only at the end"
        yield Clash(message, (key, "train.evaluate_every"), {"train.evaluate_every": 50}, "E385")


GUARD_RULES = (general_data, watched)
