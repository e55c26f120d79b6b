"""The cache of the frozen lowest layers: whether training can begin above them, what it takes and what it saves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.configuring.catalogue import plain
from tunesmith.data.caches import size_of
from tunesmith.errors import Diagnostic, Fix, Where
from tunesmith.models.adapter_config import FreezeConfig, PlacedConfig
from tunesmith.models.inventory import Inventory, trainable
from tunesmith.models.safety import read_config
from tunesmith.models.trunk import TYPES
from tunesmith.paths import home
from tunesmith.planning.calibration import forward_flops
from tunesmith.planning.counting import Counted
from tunesmith.planning.inputs import trainable_of
from tunesmith.planning.machine import Machine, memory_limits
from tunesmith.planning.memory import USABLE, WIDTH
from tunesmith.planning.sharing import dropout_rates
from tunesmith.recipe import Recipe

FIELD = "train.cache_trunk"


@dataclass(frozen=True, slots=True)
class TrunkPlan:
    """`layers` frozen ones; `bytes` hold the states of all `tokens`, each record once; `flops` of one token in them."""

    layers: int
    where: Literal["memory", "disk"]
    tokens: float
    bytes: int
    flops: float

    def to_json(self) -> dict[str, Any]:
        return {
            "layers": self.layers,
            "where": self.where,
            "tokens": round(self.tokens),
            "bytes": self.bytes,
            "flops_per_token": round(self.flops),
        }


def plan_trunk(recipe: Recipe, inventory: Inventory, counted: Counted, dtype: str) -> TrunkPlan | None:
    """None when nothing is cached, because nobody asked for it or because it cannot be."""
    where = recipe.train.cache_trunk
    if where == "off" or obstacle(recipe, inventory) is not None:
        return None
    layers = frozen_layers(recipe, inventory)
    tokens = sum(source.pool * float(source.lengths.mean()) for source in counted.sources)
    size = round(tokens) * inventory.hidden * WIDTH.get(dtype, 2)
    return TrunkPlan(layers, where, tokens, size, trunk_flops(inventory, layers, counted.mean_length))


def trunk_flops(inventory: Inventory, layers: int, length: float) -> float:
    """Of one token in a forward pass through the lowest layers; `length` is the mean document."""
    return layers / inventory.layers * forward_flops(inventory, 0.0, length)


def frozen_layers(recipe: Recipe, inventory: Inventory) -> int:
    """The highest layer never counts: what only its head learns from is computed again."""
    return min(trainable_of(recipe, inventory).lowest_layer, inventory.layers - 1)


def obstacle(recipe: Recipe, inventory: Inventory) -> Diagnostic | None:
    """E197: why training cannot begin above the frozen layers, if it cannot."""
    config, _ = read_config(inventory.folder)
    if inventory.model_type not in TYPES:
        known = ", ".join(sorted(TYPES))
        return refused(f"beginning above frozen layers is not proven for {inventory.model_type}", (f"known: {known}",))
    if recipe.train.neftune_alpha > 0:
        message = "noise on the embeddings gives the frozen layers other states in every epoch"
        return refused(message, (), {"train.neftune_alpha": 0.0})
    rates = [rate for rate in dropout_rates(config) if rate > 0]
    if rates and not recipe.compares:
        return refused(f"the model drops states by chance ({max(rates):g}), in its frozen layers as well")
    if frozen_layers(recipe, inventory) < 1:
        return nothing_frozen(recipe, inventory)
    return None


def nothing_frozen(recipe: Recipe, inventory: Inventory) -> Diagnostic:
    """E197 with a way to freeze the lower half, where that is enough."""
    upper = max(1, inventory.layers // 2)
    changes: dict[str, Any] = {"model.adapter.last": upper}
    adapter = recipe.model.adapter
    if isinstance(adapter, PlacedConfig):
        changed = adapter.model_copy(update={"last": upper})
        if recipe.model.adapter_path or not 0 < trainable(inventory, changed).lowest_layer < 10**6:
            changes = {}
    elif isinstance(adapter, FreezeConfig):
        changes |= {"model.adapter.first": 0} if adapter.first else {}
        changes |= {"model.adapter.names": []} if adapter.names else {}
    else:
        changes = {"model.adapter.method": "freeze", **changes}
    return refused("the lowest layer or the embedding is trained: no layer gives the same states again", (), changes)


def refused(message: str, evidence: tuple[str, ...] = (), changes: dict[str, Any] | None = None) -> Diagnostic:
    fixes = [Fix(f"{FIELD}=off", {FIELD: "off"}, effect="every layer is computed in every epoch")]
    if changes:
        words = " ".join(f"{key}={plain(value)}" for key, value in changes.items())
        fixes.insert(0, Fix(words, changes))
    return Diagnostic("E197", message, where=Where(field=FIELD), evidence=evidence, fixes=tuple(fixes))


def trunk_problems(
    recipe: Recipe, inventory: Inventory, trunk: TrunkPlan | None, epochs: float, machine: Machine
) -> Iterator[Diagnostic]:
    if recipe.train.cache_trunk == "off":
        return
    if trunk is None:
        found = obstacle(recipe, inventory)
        assert found is not None, "a trunk that is asked for is planned unless something forbids it"
        yield found
        return
    yield from _room(trunk, machine)
    if epochs <= 1:
        rest = "" if trunk.where == "memory" else "; a later run on the same data with the same trunk does"
        yield Diagnostic(
            "W197",
            f"{epochs:.3g} epochs read every record at most once: keeping states saves nothing in this run{rest}",
            "warning",
            Where(field=FIELD),
            fixes=(Fix(f"{FIELD}=off", {FIELD: "off"}),),
        )


def _room(trunk: TrunkPlan, machine: Machine) -> Iterator[Diagnostic]:
    """E198; memory of a run on a CPU is judged with all else that it needs."""
    if trunk.where == "disk":
        folder = existing(home())
        kept = home() / "trunk"
        free = shutil.disk_usage(folder).free + (size_of(kept) if kept.exists() else 0)
        place = f"at {folder}"
    elif machine.device == "cpu":
        return
    else:
        free, place = round(USABLE * memory_limits()[1]), "in the machine's memory"
    if trunk.bytes > free:
        other = "off" if trunk.where == "disk" else "disk"
        need, free = (f"{size / 1e9:,.1f} GB" for size in (trunk.bytes, free))
        yield Diagnostic(
            "E198",
            f"the states of the frozen layers take {need}, and {free} are free {place}",
            where=Where(field=FIELD),
            evidence=(f"{trunk.tokens:,.0f} tokens × {trunk.bytes / trunk.tokens:,.0f} bytes",),
            fixes=(Fix(f"{FIELD}={other}", {FIELD: other}),),
        )


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    while not folder.exists():
        folder = folder.parent
    return folder
