"""What a plan finds wrong with the way a model is to be tuned, before a weight is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tunesmith.errors import Diagnostic, Fix, Where, nearest
from tunesmith.models.adapter_config import BitfitConfig, Misfit, NamedConfig, PlacedConfig, TargetedConfig
from tunesmith.models.bottleneck_config import BottleneckConfig
from tunesmith.models.changing_config import LisaConfig
from tunesmith.models.inventory import Inventory, is_linear, is_target, targets_of, trainable
from tunesmith.models.kinds import kind_of_folder, kind_wanted
from tunesmith.models.locate import locate
from tunesmith.models.prompt_config import LearnedConfig
from tunesmith.planning.prompts import prompt_problems
from tunesmith.planning.stacks import stack_problems
from tunesmith.planning.tokens import token_problems
from tunesmith.recipe import Recipe

METHOD = "model.adapter.method"


def adapter_problems(recipe: Recipe, inventory: Inventory) -> Iterator[Diagnostic]:
    """Errors that would stop the run when the adapter is attached, each with the nearest setting that works."""
    adapter, path = recipe.model.adapter, recipe.model.adapter_path
    yield from stack_problems(recipe, inventory)
    yield from token_problems(recipe, inventory)
    if path is not None:
        yield from _another_kind(recipe, locate(path))
    elif isinstance(adapter, TargetedConfig):
        yield from _no_target(adapter, inventory)
        yield from _misfits(adapter, inventory)
    elif isinstance(adapter, BottleneckConfig):
        yield from _no_place(adapter, inventory)
    elif isinstance(adapter, LisaConfig) and adapter.layers > inventory.layers:
        key = "model.adapter.layers"
        message = f"LISA is to train {adapter.layers} layers at a time, and the model has {inventory.layers}"
        fix = Fix(f"{key}={inventory.layers}", {key: inventory.layers})
        yield Diagnostic("E352", message, where=Where(field=key), fixes=(fix,))
    elif isinstance(adapter, LearnedConfig):
        yield from prompt_problems(adapter, inventory)
    elif isinstance(adapter, NamedConfig) and trainable(inventory, adapter).total == 0:
        biases = isinstance(adapter, BitfitConfig)
        message = f"{adapter.title} has nothing to train: the model has no {'biases' if biases else 'such parameters'}"
        changes = {METHOD: "norms"} if biases else {METHOD: "freeze", "model.adapter.last": 2}
        fix = Fix(" ".join(f"{key}={value}" for key, value in changes.items()), changes)
        yield Diagnostic("E316", message, where=Where(field=METHOD), fixes=(fix,))


def _another_kind(recipe: Recipe, folder: Path) -> Iterator[Diagnostic]:
    """E313: the folder to go on from holds the adapter of another method."""
    wanted, found = kind_wanted(recipe.model.adapter), kind_of_folder(folder)
    if found is None or wanted == found:
        return
    yield Diagnostic(
        "E313",
        f"the method is {recipe.model.adapter.word}, and the folder to go on from holds an adapter of {found}",
        where=Where(field="model.adapter_path"),
        evidence=(str(folder),),
        fixes=(
            Fix(f"{METHOD}={found}", {METHOD: found}),
            Fix("model.adapter_path=", {"model.adapter_path": None}, effect="begins a new adapter"),
        ),
    )


def _no_target(adapter: TargetedConfig, inventory: Inventory) -> Iterator[Diagnostic]:
    """E312: a module that the model does not have."""
    linear = sorted(
        {name.split(".")[-2] for name, info in inventory.tensors.items() if is_linear(name, info)},
    )
    for target in adapter.targets:
        if target == "all" or any(is_target(name, info, (target,)) for name, info in inventory.tensors.items()):
            continue
        proposed = [nearest(target, linear) or "all"] if len(adapter.targets) == 1 else ["all"]
        key = "model.adapter.targets"
        yield Diagnostic(
            "E312",
            f"no linear layer of the model is called {target!r}",
            where=Where(field=key),
            evidence=(f"linear layers: {', '.join(linear)}",),
            fixes=(Fix(f"{key}=[{proposed[0]}]", {key: proposed}),),
        )


def _no_place(adapter: BottleneckConfig, inventory: Inventory) -> Iterator[Diagnostic]:
    """E350: an architecture of which nobody said where bottleneck adapters belong."""
    if not targets_of(inventory, adapter):
        message = f"where bottleneck adapters belong in {inventory.model_type} is not known"
        fix = Fix(f"{METHOD}=lora", {METHOD: "lora"})
        yield Diagnostic("E350", message, where=Where(field=METHOD), fixes=(fix,))


def _misfits(adapter: PlacedConfig, inventory: Inventory) -> Iterator[Diagnostic]:
    """E310 and E311: matrices that cannot be adapted so; one problem with the value that suits them all."""
    found: list[tuple[str, Misfit]] = []
    for name, shape in targets_of(inventory, adapter).items():
        if (misfit := adapter.misfit(*shape)) is not None:
            found.append((name.removesuffix(".weight"), misfit))
    if not found:
        return
    shapes = targets_of(inventory, adapter)
    name, first = found[0]
    key = f"model.adapter.{first.field}"
    value = adapter.suits(set(shapes.values()))
    fixes = () if value is None else (Fix(f"{key}={value}", {key: value}),)
    yield Diagnostic(
        first.code,
        f"{adapter.title} does not fit {name}: {first.reason}",
        where=Where(field=key),
        evidence=(f"so it is with {len(found)} of {len(shapes)} linear layers",),
        fixes=fixes or (Fix("leave these layers out of model.adapter.targets"),),
    )
