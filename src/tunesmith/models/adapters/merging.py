"""An adapter becomes part of the weights, formed in fp32 and cast once."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.errors import ModelError, Where
from tunesmith.models.adapters.bottleneck import BottleneckModel
from tunesmith.models.dora import ExactDora, gain_of
from tunesmith.models.kinds import kind_of
from tunesmith.models.lora import FastLoraLinear
from tunesmith.models.quantized.linear import QuantizedLinear, in_full


def merge(model: PeftModel | BottleneckModel) -> PreTrainedModel:
    """The plain model with W + s BA formed in fp32 and cast once; the adapter wrapper is gone afterwards.

    Raises ModelError E095 when a merged weight is not finite, E314 for an adapter that is no change of weights.
    """
    if isinstance(model, BottleneckModel):
        raise not_mergeable("bottleneck")
    if not isinstance(model.base_model, BaseTuner):
        raise not_mergeable(kind_of(next(iter(model.peft_config.values())).to_dict()))
    for module in list(model.modules()):
        if isinstance(module, BaseTunerLayer):
            merge_one(module)
    merged = model.base_model.unload()  # pyright: ignore[reportCallIssue]
    assert isinstance(merged, PreTrainedModel)
    if hasattr(merged, "peft_config"):
        del merged.peft_config  # another adapter may come: PEFT would count this one too
    return all_in_full(merged)


def in_fp32(layer: BaseTunerLayer) -> torch.dtype | None:
    """Put a quantised base in full, in fp32; returns the type that it is to have in the end."""
    base = layer.get_base_layer()
    if not isinstance(base, QuantizedLinear):
        return None
    layer.base_layer = in_full(base, torch.float32)  # pyright: ignore[reportAttributeAccessIssue]
    return base.dtype


def all_in_full(model: PreTrainedModel) -> PreTrainedModel:
    """Quantised layers that no adapter changes become ordinary ones."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            model.set_submodule(name, in_full(module, module.dtype))
    return model


def scale(model: PeftModel, share: float) -> bool:
    """Multiply every update s B A by `share`; False, and nothing done, for an adapter that is anything else."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    ours = [layer for layer in layers if isinstance(layer, FastLoraLinear)]
    sums = all(not layer.lora_variant and not any(layer.lora_bias.values()) for layer in ours)
    whole = any(config.modules_to_save for config in model.peft_config.values())  # pyright: ignore[reportAttributeAccessIssue]
    if len(ours) < len(layers) or not sums or whole:
        return False
    for layer in ours:
        for name in layer.scaling:
            layer.scaling[name] *= share
    return True


def merge_one(layer: BaseTunerLayer) -> None:
    """One layer's weights become what they are with the adapter; a quantised one is put in full for it."""
    dtype = in_fp32(layer)
    if isinstance(layer, FastLoraLinear) and is_ours(layer):
        merge_layer(layer)
    else:
        merge_in_fp32(layer)
    if dtype is not None:
        layer.get_base_layer().to(dtype)


def not_mergeable(kind: str, folder: Path | None = None) -> ModelError:
    return ModelError(
        "E314",
        f"an adapter of {kind} changes no weights: it cannot be merged",
        where=None if folder is None else Where(str(folder)),
        fixes=["use the adapter as it is: every command takes the run"],
    )


def is_ours(layer: FastLoraLinear) -> bool:
    """Whether every adapter of the layer is one that `merged_weight` forms."""
    known = all(isinstance(variant, ExactDora) for variant in layer.lora_variant.values())
    return known and not any(layer.lora_bias.values()) and (not layer.lora_variant or len(layer.lora_A) == 1)


@torch.no_grad()
def merge_layer(layer: FastLoraLinear) -> None:
    weight = layer.get_base_layer().weight
    assert isinstance(weight, Tensor)
    for name in layer.active_adapters:
        if name in layer.lora_A:
            total = merged_weight(layer, name, weight)
            check_finite(total)
            weight.copy_(total.to(weight.dtype))


def merged_weight(layer: FastLoraLinear, name: str, weight: Tensor) -> Tensor:
    """W + s B A in fp32; with DoRA each row brought to its learned length."""
    a, b = layer.factors(name)
    total = weight.float() + layer.scaling[name] * (b.float() @ a.float())
    return gain_of(layer, name)[:, None] * total if name in layer.lora_variant else total


@torch.no_grad()
def merge_in_fp32(layer: BaseTunerLayer) -> None:
    """PEFT's own merge, on weights that are fp32 for that long."""
    held = dict(layer.get_base_layer().named_parameters())
    kinds = {name: parameter.dtype for name, parameter in held.items()}
    for parameter in held.values():
        parameter.data = parameter.data.float()
    try:
        layer.merge(safe_merge=True)
    except ValueError as error:  # what PEFT raises for its own kinds of adapter
        raise ModelError("E095", f"the merged weights are not finite: {error}") from error
    for name, parameter in layer.get_base_layer().named_parameters():
        check_finite(parameter)
        parameter.data = parameter.data.to(kinds[name])


def check_finite(total: Tensor) -> None:
    if not torch.isfinite(total).all():
        raise ModelError("E095", "the merged weights are not finite: the adapter holds NaN or Inf")
