"""Which layers form what again in the backward pass: the cheapest choice in time that fits into memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tunesmith.models.inventory import WRITTEN_OUT, Inventory
from tunesmith.models.policy import Checkpointing, Policy, everywhere
from tunesmith.planning.memory import NORMED_AFTERWARDS, Sizes


@dataclass(frozen=True, slots=True)
class Costs:
    """FLOP per token that a layer of each policy computes twice; the copies of an offloaded one run beside them."""

    selective: float
    full: float

    def of(self, chosen: Checkpointing) -> float:
        return chosen.selective * self.selective + (chosen.full + chosen.offloaded) * self.full


def costs_of(inventory: Inventory, length: float) -> Costs:
    """Of a layer in documents of a mean `length`: gate and up, or the whole forward pass.

    A written-out layer leaves out its last product, unless a norm behind that keeps what it gives.
    """
    product = 2 * inventory.hidden * inventory.intermediate
    skipped = product if inventory.model_type in WRITTEN_OUT - NORMED_AFTERWARDS else 0
    attention = 2 * length * inventory.query
    return Costs(2 * product, 2 * inventory.body / inventory.layers + attention - skipped)


def possible(inventory: Inventory, device: str) -> frozenset[Policy]:
    """Policies that this model can follow on this kind of device."""
    found: set[Policy] = {"off", "full"}
    if has_mlp(inventory):
        found.add("selective")
    if device == "cuda":
        found.add("offloaded")
    return frozenset(found)


def has_mlp(inventory: Inventory) -> bool:
    return any(".mlp." in name for name in inventory.tensors)


def choose(sizes: Sizes, tokens: int, room: float, costs: Costs, allowed: frozenset[Policy]) -> Checkpointing | None:
    """The cheapest choice whose activations take at most `room` bytes; None when there is none.

    Offloading saves little beside full checkpointing, so it comes last: as few layers as needed.
    """
    most = sizes.layers if "selective" in allowed else 0
    ways = [
        Checkpointing(full=full, selective=selective)
        for full in range(sizes.layers + 1)
        for selective in range(min(most, sizes.layers - full) + 1)
    ]
    if "offloaded" in allowed:
        ways += [Checkpointing(away, sizes.layers - away) for away in range(1, sizes.layers + 1)]
    fitting = [way for way in ways if sizes.total(tokens, way) <= room]
    return min(fitting, key=lambda way: (costs.of(way), way.offloaded, way.layers), default=None)


def smallest(sizes: Sizes, tokens: int, allowed: frozenset[Policy]) -> Checkpointing:
    """The one policy for all layers that needs the least memory."""
    return min((cut(everywhere(policy), sizes.layers) for policy in sorted(allowed)), key=partial(sizes.total, tokens))


def cut(chosen: Checkpointing, layers: int) -> Checkpointing:
    """The choice with no more layers than there are."""
    offloaded = min(chosen.offloaded, layers)
    full = min(chosen.full, layers - offloaded)
    return Checkpointing(offloaded, full, min(chosen.selective, layers - offloaded - full))
