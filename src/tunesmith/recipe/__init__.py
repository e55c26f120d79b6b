"""A run described: its settings, how they are loaded, and what they may not say together."""

from tunesmith.recipe.load import Loaded, load_recipe
from tunesmith.recipe.settings import Recipe, RunConfig, to_yaml, with_absolute_paths

__all__ = ["Loaded", "Recipe", "RunConfig", "load_recipe", "to_yaml", "with_absolute_paths"]
