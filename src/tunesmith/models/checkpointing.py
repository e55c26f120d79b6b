"""Activation checkpointing: layers that are computed again in the backward pass instead of remembered."""

from __future__ import annotations

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from tunesmith.models.forward import base_model
from tunesmith.models.layer.module import FastLayer


def checkpoint_layers(model: nn.Module, count: int) -> int:
    """Recompute the `count` lowest layers; returns how many there are to choose from."""
    base = base_model(model)
    layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer | FastLayer)]
    if count > 0 and any(isinstance(layer, GradientCheckpointingLayer) for layer in layers):
        base.gradient_checkpointing_enable({"use_reentrant": False})
    for number, layer in enumerate(layers):
        if isinstance(layer, FastLayer):
            layer.recompute = number < count
        elif number >= count:
            layer.gradient_checkpointing = False
    return len(layers)
