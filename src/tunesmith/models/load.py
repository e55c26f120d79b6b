"""A checkpoint folder becomes a module: strict about tensors, deaf to code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from tunesmith.errors import ModelError, Where
from tunesmith.models import attention, encoder
from tunesmith.models.adapters import attach, load_adapter, merge
from tunesmith.models.architecture import build_config, lines_of, misshapen
from tunesmith.models.config import ModelConfig
from tunesmith.models.finite import check_finite
from tunesmith.models.fused import fuse
from tunesmith.models.headers import MAX_NAMED, read_headers
from tunesmith.models.heads import (
    backbone_parts,
    head_modules,
    is_classifier,
    is_encoder,
    prepare_config,
    refuse_head,
    set_up_head,
    stored_outputs,
)
from tunesmith.models.inventory import check_layers
from tunesmith.models.layer.module import put_fast_layers
from tunesmith.models.locate import locate
from tunesmith.models.new_rows import add_rows
from tunesmith.models.processor import computing_type
from tunesmith.models.quantized.files import packing_for, packing_to_begin
from tunesmith.models.quantized.loading import read_quantized
from tunesmith.models.quantized.packing import Packing, check_quantized
from tunesmith.models.safety import read_config, read_json_object
from tunesmith.models.stack import locate_adapter

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CANNOT_LOAD = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError, ImportError)
PROVEN = frozenset(
    ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "smollm3", "olmo2", *encoder.RAGGED_TYPES]
)  # ragged scores tested equal to transformers' padded ones


def load_model(folder: Path, settings: ModelConfig, device: torch.device | str = "cpu", outputs: int = 0) -> nn.Module:
    """The model ready to train: base weights, attention, and the adapter attached.

    With `outputs` 0 a language model; else a sequence classifier that gives so many values where they are read.
    """
    if settings.adapter_path is not None:
        continued = locate(settings.adapter_path)
        base = load_base(folder, settings, device, outputs, packing_for(settings, continued))
        return load_adapter(base, continued, settings.adapter).to(device)
    base = load_base(folder, settings, device, outputs, packing_to_begin(settings, folder))
    return attach(base, settings.adapter).to(device)


def load_base(
    folder: Path,
    settings: ModelConfig,
    device: torch.device | str = "cpu",
    outputs: int = 0,
    packing: Packing | None = None,
) -> PreTrainedModel:
    """Safetensors only; remote code off; missing, unknown or mis-shaped tensors are errors, never random weights.

    Only a head that the checkpoint lacks is new; the vocabulary projection is not kept beside it. Adapters that are
    merged are added in fp32, and each is rounded to the model's type once. New tokens get their rows
    before that. A quantised base is packed as `model.quantization` says, or as a `packing` for an adapter does.
    """
    clean, _ = read_config(folder)
    headers = read_headers(folder)
    config = build_config(clean, folder)
    check_layers(clean, headers, folder)
    dtype = resolve_dtype(settings.dtype, clean)
    if settings.dtype == "auto":
        dtype = computing_type(dtype, torch.device(device).type)
    if outputs:
        prepare_config(config, folder, outputs)
    else:
        refuse_head(config, folder)
    packing = packing_for(settings) if packing is None else packing
    model, report = read_model(folder, config, dtype, settings, packing)
    check_finite(model.state_dict().items(), folder)
    new = new_head(model, report) if outputs and not stored_outputs(clean) else set()
    check_loading(report, folder)
    if outputs:
        set_up_head(model, new, folder)
    else:
        add_generation_config(model, folder)
    if packing is not None:
        check_quantized(model)
    add_rows(model, folder, settings.added)
    model = put_fast_layers(fuse(model)).requires_grad_(False)
    for name in settings.merged_adapters:
        model = merge(load_adapter(model, locate_adapter(name))).requires_grad_(False)
    return model.to(torch.device(device))  # pyright: ignore[reportArgumentType]


def read_model(
    folder: Path, config: PreTrainedConfig, dtype: torch.dtype, settings: ModelConfig, packing: Packing | None = None
) -> tuple[PreTrainedModel, dict]:
    """The module that the config describes, and transformers' report on its tensors."""
    attention.register()
    encoder.register()
    factory = AutoModelForSequenceClassification if is_classifier(config) else AutoModelForCausalLM
    chosen = choose_attention(config, settings)
    try:
        if packing is None:
            return quietly(folder, lambda: from_folder(factory, folder, config, dtype, chosen))
        return quietly(folder, lambda: read_quantized(folder, factory, config, dtype, chosen, packing))
    except ModelError:
        check_shapes(factory, config, folder)
        raise


def from_folder(
    factory: Any, folder: Path, config: PreTrainedConfig, dtype: torch.dtype, chosen: str | None = None
) -> tuple[PreTrainedModel, dict]:
    """Local safetensors as transformers reads them, and its report; `factory` is one of its automatic classes.

    `chosen` is the attention, None transformers' own.
    """
    loaded = factory.from_pretrained(
        str(folder),
        config=config,
        dtype=dtype,
        attn_implementation=chosen,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    assert isinstance(loaded, tuple)
    return loaded


def quietly(folder: Path, read: Callable[[], tuple[PreTrainedModel, dict]]) -> tuple[PreTrainedModel, dict]:
    """What is missing is told by `check_loading`, not by transformers. ModelError E080: the folder cannot be read."""
    transformers_logging.disable_progress_bar()
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        return read()
    except (*CANNOT_LOAD, SafetensorError) as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        message = f"the model cannot be built from config.json and its weights: {told}"
        raise ModelError("E080", message, where=Where(file=str(folder))) from error
    finally:
        transformers_logging.set_verbosity(level)


def choose_attention(config: PreTrainedConfig, settings: ModelConfig) -> str | None:
    """Our own attention; transformers' own for encoders that do not hand it what it needs."""
    if is_encoder(config):
        return encoder.choose_attention(config.model_type, settings.attention)
    return attention.DENSE if settings.attention == "dense" else attention.RAGGED


def new_head(model: PreTrainedModel, report: dict) -> set[str]:
    """Take the tensors of the new head, and those of the head it replaces, off the report; returns the new names."""
    new = {name for name in report["missing_keys"] if name.startswith(head_modules(model))}
    backbone = backbone_parts(model)
    old = {name for name in report["unexpected_keys"] if name.partition(".")[0] not in backbone}
    report["missing_keys"] = set(report["missing_keys"]) - new
    report["unexpected_keys"] = set(report["unexpected_keys"]) - old
    return new


def resolve_dtype(wanted: str, config: dict) -> torch.dtype:
    """The type asked for; one that is stored in fp16 is taken for bf16, whose range nothing leaves."""
    if wanted == "float16":
        return torch.float16
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32") if wanted == "auto" else wanted
    return DTYPES.get(name, torch.bfloat16)


def check_loading(report: dict, folder: Path) -> None:
    """ModelError E081 when a tensor has no place in the model, or a place no tensor."""
    missing, unknown = ([str(name) for name in report[key]] for key in ("missing_keys", "unexpected_keys"))
    shapes = [f"mis-shaped {key}" for key in sorted(map(str, report["mismatched_keys"]))]
    if missing or unknown or shapes:
        raise do_not_fit(len(missing), len(unknown), len(shapes), [*lines_of(missing, unknown), *shapes], folder)


def check_shapes(factory: Any, config: PreTrainedConfig, folder: Path) -> None:
    """ModelError E081 when what could not be loaded has other shapes than the model of its config.json."""
    stored = {name: info.shape for name, info in read_headers(folder).items()}
    try:
        with torch.device("meta"):
            model = factory.from_config(config)
    except CANNOT_LOAD:
        return  # then shapes were not what was wrong
    places = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = misshapen(places, model.base_model_prefix, stored)
    if found:
        raise do_not_fit(0, 0, len(found), found, folder)


def do_not_fit(missing: int, unknown: int, shapes: int, lines: list[str], folder: Path) -> ModelError:
    return ModelError(
        "E081",
        f"the weights do not fit the architecture in config.json: {missing} tensors are missing, {unknown} unknown, "
        f"{shapes} of another shape",
        where=Where(file=str(folder)),
        evidence=lines[:MAX_NAMED],
        fixes=["check that config.json and the safetensors files come from the same model"],
    )


def add_generation_config(model: PreTrainedModel, folder: Path) -> None:
    path = folder / "generation_config.json"
    if path.exists():
        stops = read_json_object(path).get("eos_token_id")
        if stops is not None and model.generation_config is not None:
            model.generation_config.eos_token_id = stops
