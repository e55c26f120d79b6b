"""A checkpoint becomes a quantised model tensor by tensor, through transformers' own places for such things.

Nothing but one tensor is held in full: weights are read from their file when their turn comes, quantised as they are
stored, whatever type the model computes in, and let go.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tunesmith.models.headers import TensorInfo, read_headers
from tunesmith.models.inventory import is_linear
from tunesmith.models.quantized.packing import Packing, is_held

METHOD = "tunesmith"


class Stored:
    """A tensor in its file, as transformers asks for it: it is read by `[...]`."""

    def __init__(self, path: Path, name: str, *, exact: bool) -> None:
        self.path, self.name, self.exact = path, name, exact

    def __getitem__(self, _: object) -> Tensor | Uncast:
        with safe_open(self.path, framework="pt") as file:  # opened anew, so that no page of it stays
            tensor = file.get_tensor(self.name)
        return Uncast(tensor) if self.exact else tensor.clone()  # one that is quantised needs no memory but its pages


class Uncast:
    """A tensor that keeps its type when it is brought to that of the model."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Tensor:
        return self.tensor if device is None else self.tensor.to(device)


def stored_weights(folder: Path) -> dict[str, Stored]:
    """All tensors of the folder; matrices of layers come as they are stored."""
    headers = read_headers(folder)
    return {name: Stored(path, name, exact=is_linear(name, headers[name])) for name, path in files_of(folder, headers)}


def files_of(folder: Path, headers: Mapping[str, TensorInfo]) -> list[tuple[str, Path]]:
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found += [(name, path) for name in file.keys() if name in headers]  # noqa: SIM118
    return found


class Request(QuantizationConfigMixin):
    """What is handed through transformers: how weights are packed."""

    def __init__(self, packing: Packing) -> None:
        self.quant_method = METHOD  # pyright: ignore[reportAttributeAccessIssue]
        self.packing = packing

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD}


class OnLoad(HfQuantizer):
    """Quantises the linear layers of decoder layers as their weights come."""

    def param_needs_quantization(self, model: nn.Module, param_name: str, **_: object) -> bool:
        name = param_name.removesuffix(".weight")
        return name != param_name and is_held(name, model.get_submodule(name))

    def get_quantize_ops(self) -> ConversionOps:
        assert isinstance(self.quantization_config, Request)
        return Quantize(self.quantization_config.packing)

    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return False

    @property
    def is_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return True


class Quantize(ConversionOps):
    """A weight that has come becomes a layer in the place of the one that waited for it."""

    def __init__(self, packing: Packing) -> None:
        self.packing = packing

    def convert(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_dict: dict[str, Any],
        *,
        model: PreTrainedModel,
        full_layer_name: str,
        missing_keys: set[str],
        **_: object,
    ) -> dict[str, Any]:
        (given,) = input_dict.values()
        weight = given[0] if isinstance(given, list) else given
        name = full_layer_name.removesuffix(".weight")
        self.packing.replace(model, name, weight, model.dtype)
        model.get_submodule(name)._is_hf_initialized = True  # pyright: ignore[reportArgumentType]
        missing_keys.discard(full_layer_name)
        return {}


register_quantization_config(METHOD)(Request)
register_quantizer(METHOD)(OnLoad)


def read_quantized(
    folder: Path, factory: Any, config: PreTrainedConfig, dtype: torch.dtype, attention: str | None, packing: Packing
) -> tuple[PreTrainedModel, dict]:
    """The model with its linear layers packed, and transformers' report; `factory` is one of its automatic classes.

    Raises what `from_pretrained` raises.
    """
    with torch.device("meta"):
        kind = type(factory.from_config(config))
    model, report = kind.from_pretrained(
        None,
        config=config,
        state_dict=stored_weights(folder),
        quantization_config=Request(packing),
        dtype=dtype,
        attn_implementation=attention,
        output_loading_info=True,
    )
    if (folder / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    model.config.name_or_path = str(folder)
    return ordinary(model), report


def ordinary(model: PreTrainedModel) -> PreTrainedModel:
    """The model without transformers' marks of a quantised one, which forbid what our layers can do."""
    quantizer = model.hf_quantizer
    assert isinstance(quantizer, HfQuantizer)
    quantizer.remove_quantization_config(model)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config._is_quantized = False
    return model
