"""(IA)³ (arXiv:2205.05638): learned factors on keys and values and on what goes into the MLP's last projection."""

from __future__ import annotations

import peft
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from tunesmith.models.adapter_config import Ia3Config
from tunesmith.models.adapters.base import Places, attach_config


def attach_ia3(model: PreTrainedModel, settings: Ia3Config) -> PeftModel:
    places = Places.of(model, settings)
    targets = named_paths(model, places)
    whole = list(settings.feedforward) if isinstance(targets, str) else [*filter(settings.scales_inputs, targets)]
    config = peft.IA3Config(
        target_modules=targets,
        feedforward_modules=whole,
        modules_to_save=places.saved,
        task_type=places.task,  # pyright: ignore[reportArgumentType]
    )
    return attach_config(model, config, places)


def named_paths(model: nn.Module, places: Places) -> list[str] | str:
    """The targets; those of some layers alone by their whole paths, since PEFT's (IA)³ chooses no layers."""
    if places.layers is None or isinstance(places.targets, str):
        return places.targets
    inside = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in places.targets]
    return [name for name in inside if any(f".{layer}." in name for layer in places.layers)]
