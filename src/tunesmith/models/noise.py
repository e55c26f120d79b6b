"""Chance inside a model: losses that compare log-probabilities need the same ones in every pass."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class DropsAttention(Protocol):
    """An attention layer of transformers, which keeps its rate as a number."""

    attention_dropout: float


def silence(model: nn.Module) -> int:
    """Set every dropout of model and adapters to 0; returns how many layers had one."""
    found = 0
    for module in model.modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            module.p = 0.0
            found += 1
        if isinstance(module, DropsAttention) and module.attention_dropout > 0:
            module.attention_dropout = 0.0
            found += 1
    return found
