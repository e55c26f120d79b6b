"""Full tuning, frozen layers, BitFit and norm tuning: weights of the model itself, by their names."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import Fix, ModelError, Where
from tunesmith.models.adapter_config import BitfitConfig, FreezeConfig, FullConfig, NamedConfig
from tunesmith.models.adapters.base import LAYER
from tunesmith.models.heads import head_modules


def train_all(model: PreTrainedModel, settings: FullConfig) -> nn.Module:
    return model.requires_grad_(True)


def train_named(model: PreTrainedModel, settings: NamedConfig) -> PreTrainedModel:
    """Train the parameters that the settings name, and heads of values; everything else stays as it is."""
    head = tuple(f"{name}." for name in head_modules(model))
    depth = 1 + max(int(match[1]) for name, _ in model.named_parameters() if (match := LAYER.search(name)))
    for name, parameter in model.named_parameters():
        match = LAYER.search(name)
        layer = int(match[1]) if match else None
        parameter.requires_grad_(settings.trains(name, layer, depth) or name.startswith(head or "\0"))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise nothing_to_train(settings)
    return model


def nothing_to_train(settings: NamedConfig) -> ModelError:
    if isinstance(settings, FreezeConfig):
        return ModelError(
            "E091",
            f"freeze leaves nothing to train: first={settings.first} last={settings.last} names={list(settings.names)}",
            where=Where(field="model.adapter"),
            fixes=[Fix("train the last two layers", {"model.adapter.last": 2})],
        )
    what = "biases" if isinstance(settings, BitfitConfig) else "norms"
    return ModelError(
        "E316",
        f"{settings.title} has nothing to train: the model has no {what}",
        where=Where(field="model.adapter.method"),
        fixes=[Fix("model.adapter.method=norms", {"model.adapter.method": "norms"})],
    )
