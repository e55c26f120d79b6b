"""Activation checkpointing: layers that are computed again in the backward pass instead of remembered."""

from __future__ import annotations

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from tunesmith.models import trunk
from tunesmith.models.forward import base_model
from tunesmith.models.layer.module import FastLayer


def checkpoint_layers(model: nn.Module, count: int) -> int:
    """Recompute the `count` lowest layers that a backward pass goes through; returns how many layers there are."""
    base = base_model(model)
    layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer | FastLayer)]
    if count > 0 and any(isinstance(layer, GradientCheckpointingLayer) for layer in layers):
        base.gradient_checkpointing_enable({"use_reentrant": False})
    first = trunk.frozen_layers(layers, base.get_input_embeddings()) if layers else 0
    for number, layer in enumerate(layers):
        chosen = first <= number < first + count
        if isinstance(layer, FastLayer):
            layer.recompute = chosen
        elif not chosen:
            layer.gradient_checkpointing = False
    return len(layers)
