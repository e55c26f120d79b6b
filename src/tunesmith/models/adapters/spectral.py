"""PiSSA (arXiv:2404.02948) and OLoRA (arXiv:2406.01775): LoRA that begins with a part of W.

PEFT takes that part out of W. Here W stays, the part is subtracted from the outputs, and what is saved is plain LoRA
of twice the rank against the original model: s (B1 A1 - B0 A0).
"""

from __future__ import annotations

from copy import deepcopy

import peft
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.models.adapter_config import OloraConfig, PissaConfig
from tunesmith.models.adapters.low_rank import attach_low_rank
from tunesmith.models.lora import FastLoraLinear


def attach_pissa(model: PreTrainedModel, settings: PissaConfig) -> PeftModel:
    fast = f"_niter_{settings.iterations}" if settings.iterations else ""
    return attach_low_rank(model, settings, begins=f"pissa{fast}")


def attach_olora(model: PreTrainedModel, settings: OloraConfig) -> PeftModel:
    return attach_low_rank(model, settings, begins="olora")


def begins_with_weights(config: peft.PeftConfig) -> bool:
    """Whether an adapter of these settings began with a part of W."""
    begins = config.init_lora_weights if isinstance(config, peft.LoraConfig) else True
    return isinstance(begins, str) and begins.lower().startswith(("pissa", "olora"))


def as_plain(config: peft.PeftConfig) -> peft.PeftConfig:
    """The settings of the plain LoRA of twice the rank; the scale stays what it is."""
    plain = deepcopy(config)
    assert isinstance(plain, peft.LoraConfig)
    growth = 2**0.5 if plain.use_rslora else 2
    plain.r, plain.lora_alpha, plain.init_lora_weights = 2 * plain.r, growth * plain.lora_alpha, True  # pyright: ignore[reportAttributeAccessIssue]
    plain.rank_pattern = {name: 2 * rank for name, rank in (plain.rank_pattern or {}).items()}
    plain.alpha_pattern = {name: growth * alpha for name, alpha in (plain.alpha_pattern or {}).items()}  # pyright: ignore[reportAttributeAccessIssue]
    return plain


def plain_tensors(model: PeftModel, tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """A = [A1, A0] and B = [B1, -B0] in place of A1 and B1."""
    found = dict(tensors)
    for path, module in model.named_modules():
        if isinstance(module, FastLoraLinear) and module.began(name):
            with torch.no_grad():
                a, b = module.factors(name)
            found[f"{path}.lora_A.weight"], found[f"{path}.lora_B.weight"] = a.contiguous(), b.contiguous()
    return found
