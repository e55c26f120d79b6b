"""AdaLoRA (arXiv:2303.10512): updates P Λ Q whose singular values are cut; `train/adalora.py` says which."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import peft
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.models.adalora_config import AdaloraConfig
from tunesmith.models.adapters.base import ADAPTER_TENSORS, Places, attach_config

PREFIX, VALUES = "base_model.model.", ".lora_E"


def attach_adalora(model: PreTrainedModel, settings: AdaloraConfig) -> PeftModel:
    """The phases of the schedule are filled in by the run, which knows how many steps it has."""
    places = Places.of(model, settings)
    config = peft.AdaLoraConfig(
        init_r=settings.first_rank,
        target_r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=settings.dropout,
        target_modules=places.targets,
        layers_to_transform=places.layers,
        total_step=1,
        deltaT=settings.every,
        beta1=settings.beta1,
        beta2=settings.beta2,
        orth_reg_weight=settings.orthogonality,
        modules_to_save=places.saved,
        task_type=places.task,  # pyright: ignore[reportArgumentType]
    )
    return attach_config(model, config, places)


def tell_phases(model: PeftModel, before: int, last_cut: int, total: int) -> None:
    """Write the phases of a run, in steps, into the settings that its folder is to have."""
    for config in model.peft_config.values():
        assert isinstance(config, peft.AdaLoraConfig)
        config.tinit, config.tfinal, config.total_step = before, total - last_cut, total


def write_cut(model: PeftModel, folder: Path) -> None:
    """Leave singular values of 0 out of a folder that was written; PEFT's `rank_pattern` tells which they are."""
    (name,) = model.peft_config
    config = deepcopy(model.peft_config[name])
    assert isinstance(config, peft.AdaLoraConfig)
    tensors = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    kept = {key.removesuffix(VALUES): tensors[key].view(-1) != 0 for key in tensors if key.endswith(VALUES)}
    if all(mask.all() for mask in kept.values()) or not any(mask.any() for mask in kept.values()):
        return  # nothing was cut, or nothing learned yet
    pattern: dict[str, list[bool]] = {}
    before = config.rank_pattern or {}
    for path, mask in kept.items():
        key = path.removeprefix(PREFIX) + VALUES
        rest = iter(mask.tolist())
        pattern[key] = [was and next(rest) for was in before.get(key, [True] * len(mask))]
        for side in ("lora_A", "lora_E"):
            tensors[f"{path}.{side}"] = tensors[f"{path}.{side}"][mask]
        tensors[f"{path}.lora_B"] = tensors[f"{path}.lora_B"][:, mask]
    config.rank_pattern, config.inference_mode = pattern, True
    stored: dict[str, Tensor] = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(stored, folder / ADAPTER_TENSORS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))
