"""Activation checkpointing: layers that are computed again in the backward pass instead of remembered."""

from __future__ import annotations

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from tunesmith.models.forward import base_model


def checkpoint_layers(model: nn.Module, count: int) -> int:
    """Recompute the `count` lowest layers; returns how many there are to choose from."""
    base = base_model(model)
    layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]
    if count > 0:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        for layer in layers[count:]:
            layer.gradient_checkpointing = False
    return len(layers)
