"""The model that a recipe names as reference, checked before a weight is loaded."""

from __future__ import annotations

from pathlib import Path

from tunesmith.data.tokenizer import Tokenizer, load_tokenizer
from tunesmith.errors import ModelError, Where
from tunesmith.models.headers import read_headers
from tunesmith.models.locate import locate
from tunesmith.recipe import Recipe


def find_reference(recipe: Recipe, tokenizer: Tokenizer) -> Path | None:
    """The folder of a reference of its own, None when the model as loaded is the reference.

    Raises ModelError E282 when it has another vocabulary, and what locating it raises.
    """
    path = recipe.model.reference.path
    if path is None or not recipe.has_reference:
        return None
    field = Where(field="model.reference.path")
    try:
        folder = locate(path)
        read_headers(folder)
        theirs = load_tokenizer(folder)
    except ModelError as error:
        error.at(field)
        raise
    if theirs.vocabulary() != tokenizer.vocabulary():
        raise ModelError(
            "E282",
            "the reference has another vocabulary than the model: their log-probabilities cannot be compared",
            where=field,
            evidence=[f"model {recipe.model.path}", f"reference {folder}"],
            fixes=["name a reference of the same family", "leave model.reference out: the model as loaded is compared"],
        )
    return folder
