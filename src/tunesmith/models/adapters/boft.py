"""BOFT (arXiv:2311.06243): blocks of a layer's inputs are rotated by a product of sparse orthogonal matrices."""

from __future__ import annotations

import peft
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from tunesmith.models.adapters.base import LAYER, Places, attach_config
from tunesmith.models.orthogonal_config import BoftConfig


def attach_boft(model: PreTrainedModel, settings: BoftConfig) -> PeftModel:
    places = Places.of(model, settings)
    names = places.targets
    if isinstance(names, str):  # all: our layers are put in place by name before PEFT looks
        inside = (
            name for name, module in model.named_modules() if isinstance(module, nn.Linear) and LAYER.search(name)
        )
        names = sorted({name.rpartition(".")[2] for name in inside})
    config = peft.BOFTConfig(
        boft_block_size=settings.block,
        boft_n_butterfly_factor=settings.factors,
        target_modules=names,
        layers_to_transform=places.layers,
        modules_to_save=places.saved,
        task_type=places.task,  # pyright: ignore[reportArgumentType]
    )
    return attach_config(model, config, places)
