"""What a plan finds wrong with the way a model is to be tuned, before a weight is read."""

from __future__ import annotations

from collections.abc import Iterator

from tunesmith.errors import Diagnostic, Fix, Where, nearest
from tunesmith.models.adapter_config import (
    AdapterConfig,
    BitfitConfig,
    FreezeConfig,
    LoraConfig,
    Misfit,
    NamedConfig,
    PlacedConfig,
    TargetedConfig,
)
from tunesmith.models.bottleneck_config import BottleneckConfig
from tunesmith.models.changing_config import LisaConfig
from tunesmith.models.inventory import Inventory, is_linear, is_target, targets_of, trainable
from tunesmith.models.prompt_config import LearnedConfig, LlamaAdapterConfig
from tunesmith.planning.continuing import continuing_problems
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
        yield from continuing_problems(recipe, inventory, path)
        return
    yield from _too_deep(adapter, inventory.layers)
    if isinstance(adapter, TargetedConfig):
        yield from _no_target(adapter, inventory)
        yield from _no_module(adapter, inventory)
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
    elif isinstance(adapter, FreezeConfig):
        yield from _no_parameter(adapter, inventory)


def _too_deep(adapter: AdapterConfig, layers: int) -> Iterator[Diagnostic]:
    """E334: more layers than there are."""
    given = {"last": adapter.last} if isinstance(adapter, PlacedConfig | LlamaAdapterConfig | FreezeConfig) else {}
    given |= {"first": adapter.first} if isinstance(adapter, FreezeConfig) else {}
    done = "trained" if isinstance(adapter, FreezeConfig) else "adapted"
    for which, count in given.items():
        if count > layers:
            key = f"model.adapter.{which}"
            message = f"the {which} {count} layers are to be {done}, and the model has {layers}"
            yield Diagnostic("E334", message, where=Where(field=key), fixes=(Fix(f"{key}={layers}", {key: layers}),))


def _no_parameter(adapter: FreezeConfig, inventory: Inventory) -> Iterator[Diagnostic]:
    """E316: a part of a name that no parameter has."""
    key = "model.adapter.names"
    for part in adapter.names:
        if not any(part in name for name in (*inventory.tensors, *inventory.value_head)):
            rest = [name for name in adapter.names if name != part]
            message = f"no parameter of the model has {part!r} in its name: nothing is trained by it"
            fix = Fix(f"{key}=[{', '.join(rest)}]", {key: rest})
            yield Diagnostic("E316", message, where=Where(field=key), fixes=(fix,))


def _no_module(adapter: TargetedConfig, inventory: Inventory) -> Iterator[Diagnostic]:
    """E312: a module to train in full that the model does not have."""
    paths = [name.rpartition(".")[0] for name in (*inventory.tensors, *inventory.value_head)]
    paths += [] if inventory.outputs else ["lm_head"]  # which may be one with the embedding
    known = sorted({path.rpartition(".")[2] for path in paths})
    for module in adapter.modules_to_save:
        if any(f".{module}." in f".{path}." for path in paths):
            continue
        key, near = "model.adapter.modules_to_save", nearest(module, known)
        proposed = [near if name == module else name for name in adapter.modules_to_save if name != module or near]
        yield Diagnostic(
            "E312",
            f"no module of the model is called {module!r}",
            where=Where(field=key),
            evidence=(f"modules: {', '.join(known)}",),
            fixes=(Fix(f"{key}=[{', '.join(map(str, proposed))}]", {key: proposed}),),
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
    shapes = targets_of(inventory, adapter)
    if isinstance(adapter, LoraConfig):
        yield from _wasteful(adapter, [min(shape) for shape in shapes.values()])
    if not found:
        return
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


def _wasteful(adapter: LoraConfig, limits: list[int]) -> Iterator[Diagnostic]:
    """W310: ranks that no update of the layer can have."""
    above = [limit for limit in limits if adapter.rank > limit]
    if above:
        key, lowest = "model.adapter.rank", min(above)
        message = (
            f"rank {adapter.rank} is above the dimension of {len(above)} of {len(limits)} layers, at least {lowest}"
        )
        fix = Fix(f"{key}={lowest}", {key: lowest}, effect="fewer numbers, and every update that is possible")
        yield Diagnostic("W310", message, "warning", where=Where(field=key), fixes=(fix,))
