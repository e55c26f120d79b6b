"""DoRA (arXiv:2402.09353): LoRA on directions and a learned length per output; `models/dora.py` computes it."""

from __future__ import annotations

from peft import PeftModel
from transformers import PreTrainedModel

from tunesmith.models.adapter_config import DoraConfig
from tunesmith.models.adapters.low_rank import attach_low_rank


def attach_dora(model: PreTrainedModel, settings: DoraConfig) -> PeftModel:
    return attach_low_rank(model, settings, dora=True)
