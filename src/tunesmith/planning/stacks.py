"""What a plan finds wrong with adapters that are to be merged below the one that is trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tunesmith.errors import Diagnostic, Fix, ModelError, Where
from tunesmith.models.adapter_folder import misfits
from tunesmith.models.headers import read_header
from tunesmith.models.inventory import ADAPTER_FILE, Inventory
from tunesmith.models.kinds import NO_WEIGHTS, kind_of_folder
from tunesmith.models.locate import locate
from tunesmith.models.stack import FIELD, Stack, above_others, find_stack, locate_adapter, read_stack
from tunesmith.recipe import Recipe


def stack_problems(recipe: Recipe, inventory: Inventory) -> Iterator[Diagnostic]:
    """Adapters that are none, that do not fit the model, cannot be merged, or were trained above others."""
    names = recipe.model.merged_adapters
    for at, name in enumerate(names):
        try:
            folder = locate_adapter(name)
        except ModelError as error:
            yield error.diagnostic
            return
        yield from _cannot_be_merged(name, folder, names)
        yield from _no_fit(name, folder, inventory)
        if wanted := read_stack(folder):  # one that was trained on the plain base may be added to any other
            yield from _other_stack(wanted, find_stack(names[:at]), name, names[at:])
    if recipe.model.adapter_path is not None:
        start = locate(recipe.model.adapter_path)
        yield from _other_stack(read_stack(start), find_stack(names), recipe.model.adapter_path, ())


def _cannot_be_merged(name: str, folder: Path, names: tuple[str, ...]) -> Iterator[Diagnostic]:
    kind = kind_of_folder(folder)
    if kind in NO_WEIGHTS:
        rest = [other for other in names if other != name]
        message = f"{name} is an adapter of {kind}, which changes no weights: it cannot be merged"
        yield Diagnostic("E314", message, where=Where(field=FIELD), fixes=(_set(rest),))


def _no_fit(name: str, folder: Path, inventory: Inventory) -> Iterator[Diagnostic]:
    reasons = list(misfits(read_header(folder / ADAPTER_FILE), inventory.tensors))
    if reasons:
        yield Diagnostic(
            "E363",
            f"{name} does not fit the model: {reasons[0]}",
            where=Where(field=FIELD),
            evidence=(f"so it is with {len(reasons)} layers",),
            fixes=(Fix("name adapters of this model", command=f"tunesmith adapters ls {name} --model MODEL"),),
        )


def _other_stack(wanted: Stack, found: Stack, name: str, rest: tuple[str, ...]) -> Iterator[Diagnostic]:
    """E364: an adapter stands above others than it was trained above."""
    if [below.hash for below in wanted] != [below.hash for below in found]:
        yield above_others(name, wanted, found, rest).diagnostic


def _set(names: list[str]) -> Fix:
    return Fix(f"{FIELD}=[{', '.join(names)}]", {FIELD: names})
