"""Which decoder layers of a model take the written-out path in training, and what keeps the others from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import nn

from tunesmith.models.forward import base_model
from tunesmith.models.layer.module import PROJECTIONS, WINDOWS, FastLayer
from tunesmith.models.layer.projection import plain_part_of
from tunesmith.models.lora import FastLoraLinear
from tunesmith.models.prompts import has_prefix


@dataclass(frozen=True, slots=True)
class Use:
    """`obstacles` are reasons with how many layers each one stops; `known`: whether the architecture has the layer."""

    layers: int
    fast: int
    known: bool
    obstacles: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        return {"layers": self.layers, "fast": self.fast, "obstacles": dict(self.obstacles)}


def use_of(model: nn.Module) -> Use:
    """As it will be in training, whatever mode the model is in now."""
    layers = [module for module in model.modules() if isinstance(module, FastLayer)]
    if not layers:
        count, reason = unknown(model)
        return Use(count, 0, False, {reason: count})
    if has_prefix(model):
        return Use(len(layers), 0, True, {"attention sees learned keys and values": len(layers)})
    training = model.training
    model.train()
    found = [reason_of(layer) for layer in layers]
    model.train(training)
    obstacles = Counter(reason for reason in found if reason is not None)
    return Use(len(layers), len(layers) - obstacles.total(), True, obstacles)


def unknown(model: nn.Module) -> tuple[int, str]:
    """Number of layers, and why none of them is replaced."""
    base = base_model(model)
    stack = next((module for module in base.modules() if isinstance(module, nn.ModuleList) and len(module)), [])
    kind = type(stack[0]).__name__ if len(stack) else "a model without a list of layers"
    if kind in WINDOWS:
        own = base.config.to_dict().get("hidden_act")
        return len(stack), f"{kind} is written out with silu, and this one has {own}"
    return len(stack), f"{kind} is not written out; {', '.join(WINDOWS)} are"


def reason_of(layer: FastLayer) -> str | None:
    """The layer's obstacle; of a linear layer that is more, what more it is."""
    reason = layer.obstacle()
    for name in chain.from_iterable(PROJECTIONS.values()):
        if reason is not None and reason.startswith(f"{name} "):
            return f"{reason}: {what_more(layer.get_submodule(name))}"
    return reason


def what_more(linear: nn.Module) -> str:
    if not isinstance(linear, FastLoraLinear):
        return f"it is a {type(linear).__name__}"
    base = linear.get_base_layer()
    if plain_part_of(base) is None:
        return f"its weights are those of a {type(base).__name__}"
    if linear.merged:
        return "its adapter is merged"
    if len(linear.active_adapters) != 1:
        return f"{len(linear.active_adapters)} adapters are active"
    dropout = linear.lora_dropout[linear.active_adapters[0]]
    if isinstance(dropout, nn.Dropout) and dropout.p > 0:
        return f"its adapter drops {dropout.p:.3g} of what goes in"
    if any(parameter.requires_grad for parameter in base.parameters()):
        return "its weights are trained beside the adapter"
    return "its adapter is a variant of LoRA"
