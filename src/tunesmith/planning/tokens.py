"""What new tokens add to a model, and what a plan finds wrong with them, before a weight is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tunesmith.errors import Diagnostic, Fix, Where
from tunesmith.models.inventory import EMBEDDING, HEAD, Inventory, Trainable
from tunesmith.models.locate import locate
from tunesmith.recipe import Recipe
from tunesmith.vocabulary import FIELD, find_added, read_new_tokens


def with_new_tokens(inventory: Inventory, recipe: Recipe, folder: Path) -> Inventory:
    """The model with the rows that its new tokens need beyond those it has."""
    if not recipe.model.new_tokens:
        return inventory
    size = find_added(folder, recipe.model.new_tokens).size
    tensors = {
        name: info._replace(shape=(max(size, info.shape[0]), *info.shape[1:]))
        if EMBEDDING.search(name) or HEAD.search(name)
        else info
        for name, info in inventory.tensors.items()
    }
    return replace(inventory, tensors=tensors, vocabulary=max(size, inventory.vocabulary))


def with_trained_rows(trained: Trainable, recipe: Recipe, inventory: Inventory) -> Trainable:
    """With the rows of new tokens, in the embedding and in a head of its own; those of a folder are counted in it."""
    count = len(recipe.model.new_tokens)
    if not count:
        return trained
    if recipe.model.adapter_path is not None:
        return replace(trained, rows=count, lowest_layer=0)
    names = [name.removesuffix(".weight") for name in inventory.tensors if EMBEDDING.search(name) or HEAD.search(name)]
    shapes = {f"{name}.trainable_tokens_delta": (count, inventory.hidden) for name in names}
    return replace(
        trained,
        adapters=trained.adapters + count * inventory.hidden * len(names),
        lowest_layer=0,
        shapes={**trained.shapes, **shapes} if trained.shapes else {},
        rows=count,
    )


def token_problems(recipe: Recipe, inventory: Inventory) -> Iterator[Diagnostic]:
    yield from _biased(recipe, inventory)
    path = recipe.model.adapter_path
    if path is not None:
        yield from _other_tokens(recipe, inventory.folder, locate(path))


def _biased(recipe: Recipe, inventory: Inventory) -> Iterator[Diagnostic]:
    """E338: PEFT, whose files are written, computes such a head without its bias."""
    if recipe.model.new_tokens and any(HEAD.search(f"{name[: -len('bias')]}weight") for name in biases(inventory)):
        fix = Fix(f"{FIELD}=[]", {FIELD: []}, effect="the texts stay what they are, in several tokens each")
        message = "the head of the model has a bias, with which rows of new tokens cannot be trained"
        yield Diagnostic("E338", message, where=Where(field=FIELD), fixes=(fix,))


def biases(inventory: Inventory) -> list[str]:
    return [name for name in inventory.tensors if name.endswith(".bias")]


def _other_tokens(recipe: Recipe, base: Path, folder: Path) -> Iterator[Diagnostic]:
    """E339: the folder to go on from was trained with other tokens than the recipe names."""
    known = read_new_tokens(base).tokens
    found = [token for token in read_new_tokens(folder).tokens if token not in known]
    if found == list(recipe.model.new_tokens):
        return
    listed = ", ".join(map(repr, found)) or "no new tokens"
    yield Diagnostic(
        "E339",
        f"the adapter to go on from was trained with {listed}, and the recipe names other ones",
        where=Where(field=FIELD),
        evidence=(str(folder), f"{FIELD}: {', '.join(map(repr, recipe.model.new_tokens)) or 'none'}"),
        fixes=(
            Fix(f"{FIELD}=[{', '.join(found)}]", {FIELD: found}),
            Fix("add tokens to what was merged", command=f"tunesmith merge {recipe.model.adapter_path} OUT"),
        ),
    )
