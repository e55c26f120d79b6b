"""A model becomes one with exactly the parameters trainable that the settings name."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from tunesmith.models.adapter_config import AdapterConfig
from tunesmith.models.adapters.registry import method_of


def attach(model: PreTrainedModel, adapter: AdapterConfig) -> nn.Module:
    """The model with exactly the parameters trainable that the settings name."""
    return method_of(adapter).attach(model, adapter)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
