"""What the records of a recipe are to its objectives."""

from __future__ import annotations

from tunesmith.recipe import Recipe
from tunesmith.types import Task


def task_of(recipe: Recipe) -> Task:
    """Of the first objective; the checks of the recipe see to it that the others read the same."""
    return Task(recipe.objective.kind, recipe.objective.reads)
