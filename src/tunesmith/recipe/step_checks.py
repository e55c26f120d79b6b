"""Steps that are too small for what an objective compares within them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tunesmith.configuring.layers import Origin
from tunesmith.recipe.clash import Clash
from tunesmith.recipe.settings import Recipe


def company(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """An objective that looks at the whole step first compares the records of the step: one alone has no other."""
    train = recipe.train
    if train.tokens_per_step is not None or train.sequences_per_step != 1:
        return
    for objective in recipe.objectives:
        if objective.looks_ahead:
            message = f"{objective.title} compares the records of a step with each other, and a step has one"
            fields = ("train.sequences_per_step", "objective.name")
            yield Clash(message, fields, {"train.sequences_per_step": 16})
            return
