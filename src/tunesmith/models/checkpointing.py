"""Activation checkpointing: what layers form again in the backward pass instead of remembering it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from tunesmith.errors import Fix, ModelError, Where
from tunesmith.models.forward import base_model
from tunesmith.models.layer.module import FastLayer
from tunesmith.models.offload import HostStore, carrier_for
from tunesmith.models.policy import Checkpointing, Policy
from tunesmith.models.prompts import has_prompt
from tunesmith.models.trunk import learns


def checkpoint_layers(model: nn.Module, chosen: Checkpointing) -> list[Policy]:
    """Give every layer its policy; the same losses and gradients, to the bit. Returns the policies.

    Call it once, after adapters are attached: layers below the lowest trained one keep nothing anyway. Raises
    MachineError E188 for offloaded on a CPU, and ModelError E188 for selective where layers have no `mlp` of their own.
    """
    base = base_model(model)
    layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer | FastLayer)]
    lowest = 0 if has_prompt(model) else lowest_reached(base, layers)
    policies: list[Policy] = [chosen.of_layer(number - lowest) for number in range(len(layers))]
    away = "offloaded" in policies
    store = HostStore(carrier_for(base.device)) if away else None
    if (away or "full" in policies) and any(isinstance(layer, GradientCheckpointingLayer) for layer in layers):
        base.activation_checkpointing_enable({"use_reentrant": False}, offload=away)  # one way for all of them
        base.disable_input_require_grads()  # layers below the lowest trained one need no gradient
    for layer, policy in zip(layers, policies, strict=True):
        if isinstance(layer, FastLayer):
            layer.policy, layer.store = policy, store
        else:
            layer.gradient_checkpointing = policy in ("full", "offloaded")
        if policy == "selective":
            layer.set_submodule("mlp", CheckpointedMlp(mlp_of(layer)))
    return policies


def mlp_of(layer: nn.Module) -> nn.Module:
    for name, module in layer.named_children():
        if name == "mlp":
            return module
    raise ModelError(
        "E188",
        "selective checkpointing forms the MLP of a layer again, and the layers of this model have none",
        where=Where(field="train.activation_checkpointing"),
        fixes=[Fix("train.activation_checkpointing=full", {"train.activation_checkpointing": "full"})],
    )


def lowest_reached(base: PreTrainedModel, layers: Sequence[nn.Module]) -> int:
    """The lowest layer that the backward pass goes through."""
    if learns(base.get_input_embeddings()):
        return 0
    return next((number for number, layer in enumerate(layers) if learns(layer)), len(layers))


class CheckpointedMlp(nn.Module):
    """The MLP of a transformers layer, formed again in the backward pass; parameters keep their names.

    Written-out layers do the same themselves, and use this one only where something keeps them from the fast path.
    """

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self._modules = mlp._modules  # one set of children for both, whoever replaces one
        self.plain = (mlp,)  # in a tuple, so that its parameters are not found twice

    def forward(self, hidden_states: Tensor) -> Tensor:
        (mlp,) = self.plain
        mlp.training = self.training
        if not torch.is_grad_enabled():
            return mlp(hidden_states)
        return checkpoint(mlp, hidden_states, use_reentrant=False)  # pyright: ignore[reportReturnType]
