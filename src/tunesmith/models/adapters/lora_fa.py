"""LoRA-FA (arXiv:2308.03303): A stays as it began, so that only B is trained."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from tunesmith.models.adapter_config import LoraFaConfig
from tunesmith.models.adapters.low_rank import attach_low_rank
from tunesmith.models.lora import FastLoraLinear

SEED = 20_230_807  # of every A: the same ones in every run, since checkpoints hold only what is trained


def attach_lora_fa(model: PreTrainedModel, settings: LoraFaConfig) -> PeftModel:
    wrapped = attach_low_rank(model, settings)
    generator = torch.Generator().manual_seed(SEED)
    for layer in lora_layers(wrapped):
        for parameter in layer.lora_A.parameters():
            first = nn.init.kaiming_uniform_(torch.empty(parameter.shape), a=5**0.5, generator=generator)
            parameter.data.copy_(first)
    freeze_a(wrapped)
    return wrapped


def freeze_a(model: PeftModel) -> None:
    for layer in lora_layers(model):
        layer.lora_A.requires_grad_(False)


def lora_layers(model: PeftModel) -> list[FastLoraLinear]:
    return [module for module in model.modules() if isinstance(module, FastLoraLinear)]
