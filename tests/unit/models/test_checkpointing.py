"""Layers are recomputed where a backward pass goes through them, from the lowest one up."""

import pytest
from tests.unit.models.architectures import build

from tunesmith.models.adapters import attach
from tunesmith.models.checkpointing import checkpoint_layers
from tunesmith.models.config import FreezeConfig, LoraConfig
from tunesmith.models.layer.module import FastLayer, put_fast_layers


@pytest.mark.parametrize("adapter", [FreezeConfig(last=2), LoraConfig(last=2)], ids=["freeze", "lora"])
def test_frozen_layers_below_are_not_among_them(adapter):
    model = attach(put_fast_layers(build("llama")), adapter)
    assert checkpoint_layers(model, 1) == 3
    layers = [module for module in model.modules() if isinstance(module, FastLayer)]
    assert [layer.recompute for layer in layers] == [False, True, False]


def test_the_same_holds_for_layers_of_transformers():
    model = attach(build("gemma2"), FreezeConfig(last=2))
    checkpoint_layers(model, 1)
    layers = model.get_submodule("model.layers").children()
    assert [vars(layer)["gradient_checkpointing"] for layer in layers] == [False, True, False]
