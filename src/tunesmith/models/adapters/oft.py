"""OFT (arXiv:2306.07280): blocks of a layer's inputs are rotated by an orthogonal matrix.

PEFT's exact Cayley transform is (I - Q)(I + Q)^-1, the inverse of what its series approximates; `use_cayley_neumann` in
the file says which one the numbers are for.
"""

from __future__ import annotations

import peft
from peft import PeftModel
from transformers import PreTrainedModel

from tunesmith.models.adapters.base import Places, attach_config
from tunesmith.models.orthogonal_config import OftConfig


def attach_oft(model: PreTrainedModel, settings: OftConfig) -> PeftModel:
    places = Places.of(model, settings)
    config = peft.OFTConfig(
        r=0,
        oft_block_size=settings.block,
        target_modules=places.targets,
        layers_to_transform=places.layers,
        coft=settings.constrained,
        eps=settings.epsilon,
        use_cayley_neumann=settings.neumann,
        modules_to_save=places.saved,
        task_type=places.task,  # pyright: ignore[reportArgumentType]
    )
    return attach_config(model, config, places)
