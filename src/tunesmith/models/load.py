"""A checkpoint folder becomes a module: strict about tensors, deaf to code."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from tunesmith.errors import ModelError, Where
from tunesmith.models import attention
from tunesmith.models.adapters import attach, load_adapter
from tunesmith.models.config import ModelConfig
from tunesmith.models.fused import fuse
from tunesmith.models.headers import read_headers
from tunesmith.models.locate import locate
from tunesmith.models.processor import computing_type
from tunesmith.models.safety import read_config

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PROVEN = frozenset(
    ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "smollm3", "olmo2"]
)  # ragged scores tested equal to transformers' padded ones


def load_model(folder: Path, settings: ModelConfig, device: torch.device | str = "cpu") -> nn.Module:
    """The model ready to train: base weights, attention, and the adapter attached."""
    base = load_base(folder, settings, device)
    if settings.adapter_path is not None:
        return load_adapter(base, locate(settings.adapter_path)).to(device)
    return attach(base, settings.adapter).to(device)


def load_base(folder: Path, settings: ModelConfig, device: torch.device | str = "cpu") -> PreTrainedModel:
    """Safetensors only; remote code off; missing, unknown or mis-shaped tensors are errors, never random weights."""
    attention.register()
    transformers_logging.disable_progress_bar()
    clean, _ = read_config(folder)
    read_headers(folder)
    try:
        config = AutoConfig.for_model(**clean)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError("E080", f"config.json: {error}", where=Where(file=str(folder / "config.json"))) from error
    dtype = resolve_dtype(settings.dtype, clean)
    if settings.dtype == "auto":
        dtype = computing_type(dtype, torch.device(device).type)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            str(folder),
            config=config,
            dtype=dtype,
            attn_implementation=attention.DENSE if settings.attention == "dense" else attention.RAGGED,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError("E080", f"the model cannot be loaded: {error}", where=Where(file=str(folder))) from error
    assert isinstance(loaded, tuple)
    model, report = loaded
    check_loading(report, folder)
    add_generation_config(model, folder)
    return fuse(model).requires_grad_(False).to(torch.device(device))  # pyright: ignore[reportArgumentType]


def resolve_dtype(wanted: str, config: dict) -> torch.dtype:
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32") if wanted == "auto" else wanted
    return DTYPES.get(name, torch.bfloat16)


def check_loading(report: dict, folder: Path) -> None:
    kinds = {
        "missing": report["missing_keys"],
        "unknown": report["unexpected_keys"],
        "mis-shaped": report["mismatched_keys"],
    }
    lines = [f"{kind} {key}" for kind, keys in kinds.items() for key in sorted(map(str, keys))]
    if lines:
        counts = ", ".join(f"{len(keys)} {kind}" for kind, keys in kinds.items())
        raise ModelError(
            "E081",
            f"the weights do not fit the architecture in config.json: {counts} tensors",
            where=Where(file=str(folder)),
            evidence=lines[:20],
            fixes=["check that config.json and the safetensors files come from the same model"],
        )


def add_generation_config(model: PreTrainedModel, folder: Path) -> None:
    path = folder / "generation_config.json"
    if path.exists():
        stops = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        if stops is not None and model.generation_config is not None:
            model.generation_config.eos_token_id = stops
