"""How large each layer's gradient is, and its update beside its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tunesmith.train.optimizers.base import layer_of

Norms = dict[str, float]


@dataclass(frozen=True, slots=True)
class Seen:
    """Gradients' norms of the layers, and the trained weights, before an update."""

    gradients: Norms
    weights: dict[str, Tensor]


def look(masters: Mapping[str, nn.Parameter]) -> Seen:
    """Call it before anything is clipped; it copies everything that is trained."""
    gradients = {name: master.grad for name, master in masters.items() if master.grad is not None}
    return Seen(norms(gradients), {name: master.detach().clone() for name, master in masters.items()})


def told(seen: Seen, masters: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, float]]:
    """Figures by name after the update: the norm of each layer's gradient, and its update as a share of its weights."""
    with torch.no_grad():
        updates = norms({name: master - seen.weights[name] for name, master in masters.items()})
    sizes = norms(seen.weights)
    for place, size in sizes.items():
        yield f"layers/{place}/grad_norm", seen.gradients.get(place, 0.0)
        yield f"layers/{place}/update_ratio", updates[place] / size if size > 0 else 0.0


def norms(tensors: Mapping[str, Tensor]) -> Norms:
    """Euclidean norms of everything in a layer together."""
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(place_of(name), []).append(tensor)
    return {place: torch.nn.utils.get_total_norm(found, foreach=True).item() for place, found in sorted(parts.items())}


def place_of(name: str) -> str:
    """`003` for the fourth layer, `embedding`, or `top` for what stands above all layers."""
    layer = layer_of(name)
    return "top" if layer is None else "embedding" if layer < 0 else f"{layer:03}"
