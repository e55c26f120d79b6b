"""Trained weights in their final place: a PEFT folder for adapters, a Hugging Face folder otherwise."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from peft import PeftModel
from torch import nn

from tunesmith.models.adapters import save_adapter
from tunesmith.models.forward import base_model

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


def save_weights(model: nn.Module, run: Path, base: Path) -> Path:
    """Write `run/adapter` or `run/model`, whole or not at all; an older one is replaced."""
    name = "adapter" if isinstance(model, PeftModel) else "model"
    stage = run / f".tmp-{name}-{uuid.uuid4().hex[:8]}"
    try:
        if isinstance(model, PeftModel):
            save_adapter(model, stage, str(base))
        else:
            base_model(model).save_pretrained(str(stage))
            copy_tokenizer(base, stage)
        swap(stage, run / name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return run / name


def copy_tokenizer(source: Path, folder: Path) -> None:
    """The tokenizer, chat template and generation config, byte for byte."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)


def swap(stage: Path, final: Path) -> None:
    """Put a finished folder in place of an older one."""
    old = final.with_name(f".old-{final.name}-{uuid.uuid4().hex[:8]}")
    if final.exists():
        os.replace(final, old)
    os.replace(stage, final)
    shutil.rmtree(old, ignore_errors=True)
