"""What a base in few bits takes, and what a plan finds wrong with it, before a weight is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tunesmith.errors import Diagnostic, Fix, Where
from tunesmith.models.adapter_config import TargetedConfig
from tunesmith.models.inventory import Inventory, is_linear, is_target
from tunesmith.models.locate import locate
from tunesmith.models.quantization_config import QuantizationConfig, Unquantized
from tunesmith.models.rounded import rounded_copy
from tunesmith.recipe import Recipe

FIELD = "model.quantization"
NAME = f"{FIELD}.name"


def weight_bytes(inventory: Inventory, width: int, held: QuantizationConfig, *, joined: bool) -> int:
    """All weights, and the matrix of the product at work in full; `joined`: of layers side by side."""
    if isinstance(held, Unquantized):
        return width * inventory.total
    packed = {name: info for name, info in inventory.tensors.items() if is_linear(name, info)}
    bits = sum(held.stored_bytes((info.shape[0], info.shape[1])) for info in packed.values())
    largest = max((info.numel for info in packed.values()), default=0)
    if joined:
        side = max(2 * inventory.intermediate, inventory.query + 2 * inventory.key)
        largest = max(largest, side * inventory.hidden)
    rest = inventory.total - sum(info.numel for info in packed.values())
    return bits + width * (rest + largest)


def quantization_problems(recipe: Recipe, inventory: Inventory) -> Iterator[Diagnostic]:
    """Errors that would stop the run when the model is loaded, and doubts."""
    held, path = recipe.model.quantization, recipe.model.adapter_path
    copied = rounded_copy(inventory.folder, recipe.model.path)
    if copied is not None:
        yield replace(copied, where=Where(field="model.path"))
    if path is not None:
        yield from _another_base(held, path)
    if isinstance(held, Unquantized):
        return
    yield from _saved_layers(recipe, inventory)
    yield from _other_layers(inventory)


def _another_base(held: QuantizationConfig, path: str) -> Iterator[Diagnostic]:
    """E326 for LoftQ, whose base is its own; W320 where an adapter merely meets a base that it was not trained on."""
    from tunesmith.models.quantized.files import TAKEN, base_of_folder

    folder = locate(path)
    before = base_of_folder(folder)
    if before == held:
        return
    fix = Fix(f"{FIELD}={before.word}", {FIELD: before.model_dump(mode="json")})
    where, evidence = Where(field=NAME), (str(folder),)
    if (folder / TAKEN).is_file():
        message = f"the adapter to go on from began with LoftQ on a base in {before.told()}, and fits no other"
        yield Diagnostic("E326", message, where=where, evidence=evidence, fixes=(fix,))
    elif (folder / "adapter_config.json").is_file() and not isinstance(before, Unquantized):
        message = f"the adapter to go on from was trained on a base in {before.told()}, and this one is {held.told()}"
        yield Diagnostic("W320", message, "warning", where, evidence, (fix,))


def _saved_layers(recipe: Recipe, inventory: Inventory) -> Iterator[Diagnostic]:
    """E324: layers that are trained in full beside an adapter, and that are held in few bits."""
    adapter, key = recipe.model.adapter, "model.adapter.modules_to_save"
    if not isinstance(adapter, TargetedConfig):
        return
    for module in adapter.modules_to_save:
        linear = any(
            is_linear(name, info) and is_target(name, info, (module,)) for name, info in inventory.tensors.items()
        )
        if linear:
            rest = [name for name in adapter.modules_to_save if name != module]
            message = (
                f"{module} is to be trained in full, and its weights are held in {recipe.model.quantization.told()}"
            )
            fixes = (Fix(f"{key}={rest}".replace("'", ""), {key: rest}), Fix(f"{NAME}=none", {NAME: "none"}))
            yield Diagnostic("E324", message, where=Where(field=key), fixes=fixes)


def _other_layers(inventory: Inventory) -> Iterator[Diagnostic]:
    """E325: an architecture whose matrices are not those of linear layers."""
    from tunesmith.models.quantized.skeleton import other_matrices

    found = other_matrices(inventory.folder)
    if found:
        yield Diagnostic(
            "E325",
            f"{len(found)} matrices of this architecture belong to no linear layer and cannot be held in few bits",
            where=Where(field=NAME),
            evidence=(", ".join(found[:3]),),
            fixes=(Fix(f"{NAME}=none", {NAME: "none"}),),
        )
