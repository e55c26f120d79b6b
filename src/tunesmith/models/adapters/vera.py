"""VeRA (arXiv:2310.11454): two random matrices shared by all layers, and learned factors around them."""

from __future__ import annotations

import peft
from peft import PeftModel
from transformers import PreTrainedModel

from tunesmith.models.adapter_config import VeraConfig
from tunesmith.models.adapters.base import Places, attach_config


def attach_vera(model: PreTrainedModel, settings: VeraConfig) -> PeftModel:
    places = Places.of(model, settings)
    config = peft.VeraConfig(
        r=settings.rank,
        target_modules=places.targets,
        layers_to_transform=places.layers,
        vera_dropout=settings.dropout,
        d_initial=settings.initial,
        projection_prng_key=settings.seed,
        save_projection=True,
        modules_to_save=places.saved,
        task_type=places.task,  # pyright: ignore[reportArgumentType]
    )
    return attach_config(model, config, places)
