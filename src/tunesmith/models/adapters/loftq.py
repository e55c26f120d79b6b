"""LoftQ (arXiv:2310.08659): LoRA that begins with what quantising took away; `models/quantized/loftq.py` finds it."""

from __future__ import annotations

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from tunesmith.errors import Fix, ModelError, Where
from tunesmith.models.adapters.low_rank import attach_low_rank
from tunesmith.models.loftq_config import LoftqConfig
from tunesmith.models.lora import FastLoraLinear
from tunesmith.models.quantized.linear import QuantizedLinear


@torch.no_grad()
def attach_loftq(model: PreTrainedModel, settings: LoftqConfig) -> PeftModel:
    """ModelError E322 when the base was not quantised to begin so."""
    wrapped = attach_low_rank(model, settings)
    for module in wrapped.modules():
        if not isinstance(module, FastLoraLinear):
            continue
        base = module.get_base_layer()
        if not isinstance(base, QuantizedLinear) or base.beginning is None:
            raise no_beginning()
        for factor, first in zip((module.lora_A, module.lora_B), base.beginning, strict=True):
            for parameter in factor.parameters():
                parameter.copy_(first)
        base.beginning = None
    return wrapped


def no_beginning() -> ModelError:
    key = "model.quantization"
    return ModelError(
        "E322",
        "LoftQ begins with what quantising the base takes away, and the base is not quantised",
        where=Where(field=key),
        fixes=[Fix(f"{key}=nf4", {key: "nf4"}), Fix("model.adapter.method=lora", {"model.adapter.method": "lora"})],
    )
