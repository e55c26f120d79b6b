"""Folders of bottleneck adapters: PEFT's two files, with settings of our own that PEFT refuses to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.errors import Fix, ModelError, Where
from tunesmith.models.adapters.bottleneck import BottleneckModel, attach_bottleneck
from tunesmith.models.bottleneck_config import BottleneckConfig
from tunesmith.models.heads import head_modules
from tunesmith.models.safety import ADAPTER_CONFIG, read_json_object
from tunesmith.models.tensors import read_tensors

TYPE = "TUNESMITH.BOTTLENECK"
FORMAT = 1
PREFIX = "base_model.model."  # of every key, as in PEFT's files
TENSORS = "adapter_model.safetensors"
ABOUT = ("peft_type", "format", "base_model_name_or_path", "task_type")


def save_bottleneck(model: BottleneckModel, folder: Path, base: str) -> None:
    """Write settings and trained tensors; `base` is recorded as the base model."""
    folder.mkdir(parents=True, exist_ok=True)
    task = "SEQ_CLS" if head_modules(model.base_model) else "CAUSAL_LM"
    about = dict(zip(ABOUT, (TYPE, FORMAT, base, task), strict=True))
    settings = {**about, **model.settings.model_dump(exclude={"method"})}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    save_file(
        {PREFIX + name: tensor.contiguous() for name, tensor in trained(model).items()},
        folder / TENSORS,
        metadata={"format": "pt"},
    )


def trained(model: BottleneckModel) -> dict[str, Tensor]:
    """What a folder holds: the adapters, and the head of a model that gives values."""
    inside = model.base_model
    heads = tuple(f"{name}." for name in head_modules(inside)) or ("\0",)
    return {
        name: parameter.detach()
        for name, parameter in inside.named_parameters()
        if ".bottleneck_" in name or name.startswith(heads)
    }


def load_bottleneck(model: PreTrainedModel, folder: Path) -> BottleneckModel:
    """Attach a folder, trainable; every tensor must find its place and the other way round.

    The head of a model that gives values stays new where the folder is a language model's. Raises ModelError E092
    for tensors that do not fit, E351 for settings that cannot be read.
    """
    about, settings = read_settings(folder)
    adapted = attach_bottleneck(model, settings)
    places = {PREFIX + name: place for name, place in trained(adapted).items()}
    tensors = read_tensors(folder / TENSORS)
    if about["task_type"] == "CAUSAL_LM":
        places = {name: place for name, place in places.items() if ".bottleneck_" in name}
    odd = [f"missing {name}" for name in sorted(places.keys() - tensors.keys())]
    odd += [f"unknown {name}" for name in sorted(tensors.keys() - places.keys())]
    odd += [
        f"{name}: file {tuple(tensors[name].shape)}, model {tuple(place.shape)}"
        for name, place in places.items()
        if name in tensors and tensors[name].shape != place.shape
    ]
    if odd:
        raise ModelError(
            "E092",
            f"the adapter does not fit the model: {len(odd)} tensors are missing, unknown or of another shape",
            where=Where(file=str(folder / TENSORS)),
            evidence=odd[:20],
            fixes=[f"load it on the model it was trained from: {about['base_model_name_or_path']}"],
        )
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(tensors[name])
    return adapted


def read_settings(folder: Path) -> tuple[dict[str, Any], BottleneckConfig]:
    """What the folder says of itself, and the settings of its adapters."""
    path = folder / ADAPTER_CONFIG
    found = read_json_object(path)
    missing = [key for key in ABOUT if key not in found]
    if missing or found["format"] != FORMAT:
        what = f"has no {missing[0]}" if missing else f"has the format {found['format']!r}, known is {FORMAT}"
        raise unreadable(path, what)
    settings = {key: value for key, value in found.items() if key not in ABOUT}
    try:
        return {key: found[key] for key in ABOUT}, BottleneckConfig.model_validate(settings, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise unreadable(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def base_of_bottleneck(folder: Path) -> str | None:
    """The model that the adapters of a folder were trained on."""
    return read_settings(folder)[0]["base_model_name_or_path"]


def unreadable(path: Path, what: str) -> ModelError:
    return ModelError(
        "E351",
        f"the settings of the bottleneck adapters cannot be used: adapter_config.json {what}",
        where=Where(file=str(path)),
        fixes=[Fix("take the folder as it was written"), Fix("read it with the version that wrote it")],
    )
