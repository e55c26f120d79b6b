"""LoRA and rsLoRA (arXiv:2106.09685, arXiv:2312.03732), and what every kind of LoRA shares."""

from __future__ import annotations

from typing import Literal

import peft
from peft import PeftModel
from transformers import PreTrainedModel

from tunesmith.models.adapter_config import LowRankConfig
from tunesmith.models.adapters.base import Places, attach_config


def attach_lora(model: PreTrainedModel, settings: LowRankConfig) -> PeftModel:
    return attach_low_rank(model, settings)


def attach_low_rank(
    model: PreTrainedModel,
    settings: LowRankConfig,
    *,
    begins: Literal[True] | str = True,
    dora: bool = False,
) -> PeftModel:
    """PEFT's LoRA with our linear; `begins` is PEFT's name for how A and B begin, True being the ordinary way."""
    places = Places.of(model, settings)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=settings.dropout,
        target_modules=places.targets,
        layers_to_transform=places.layers,
        use_rslora=settings.rslora,
        use_dora=dora,
        init_lora_weights=begins,  # pyright: ignore[reportArgumentType]
        modules_to_save=places.saved,
        trainable_token_indices=places.rows,  # pyright: ignore[reportArgumentType]
        task_type=places.task,  # pyright: ignore[reportArgumentType]
    )
    return attach_config(model, config, places, settings.dtype)
