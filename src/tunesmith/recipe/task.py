"""What the records of a recipe are, with the names of classes that stand in the data."""

from __future__ import annotations

from dataclasses import replace

from tunesmith.data.labelled import find_classes
from tunesmith.recipe.settings import Recipe
from tunesmith.types import Task


def resolve_task(recipe: Recipe) -> Task:
    """The recipe's task; an objective whose labels are names reads the training data once to know them all."""
    if not recipe.objective.named_labels:
        return recipe.task
    return replace(recipe.task, classes=find_classes(recipe.data.train, recipe.data))
