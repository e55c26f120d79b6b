"""Trained weights in their final place: an adapter folder for adapters, a Hugging Face folder otherwise."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from tunesmith.contained import check_file
from tunesmith.models.adapters import Adapted, save_adapter
from tunesmith.models.forward import base_model
from tunesmith.models.heads import has_head, is_encoder
from tunesmith.models.meaning import Meaning, meaning_of, name_outputs, write_meaning
from tunesmith.models.padding import PadToken, free_pad
from tunesmith.models.safety import read_json_object
from tunesmith.models.stack import Stack, write_stack
from tunesmith.models.trained_on import mark_base
from tunesmith.types import Task
from tunesmith.vocabulary import FILE, NewTokens, write_extended

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
    "vocab.txt",
    FILE,
)
PLAIN = NewTokens()


def save_weights(
    model: nn.Module, run: Path, base: Path, task: Task | None = None, stack: Stack = (), new: NewTokens = PLAIN
) -> Path:
    """Write `run/adapter` or `run/model`, whole or not at all; an older one is replaced.

    `stack` are the adapters merged into the base, which the folder of an adapter must tell of; with `new` tokens it has
    the tokenizer too.

    `task` says what the values of a reward model or classifier mean. Its adapter folder has the tokenizer too, because
    the padding token is another one.
    """
    name = "adapter" if isinstance(model, Adapted) else "model"
    stage = run / f".tmp-{name}-{uuid.uuid4().hex[:8]}"
    plain = base_model(model)
    try:
        if isinstance(model, Adapted):
            save_adapter(model, stage, str(base))
            mark_base(stage, base)
            write_stack(stage, str(base), stack)
            if new.tokens:
                copy_tokenizer(base, stage, new)
        elif not has_head(plain):
            plain.save_pretrained(str(stage))
            copy_tokenizer(base, stage)
        if has_head(plain):
            save_head(plain, stage, base, meaning_of(task or Task("pair", "values")), whole=name == "model")
        swap(stage, run / name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return run / name


def save_head(model: PreTrainedModel, folder: Path, base: Path, meaning: Meaning, *, whole: bool) -> None:
    """Write what a reward model or classifier needs beside an adapter's weights, or with `whole` the model itself.

    Tokenizer and config name the same padding token, one that no text holds: transformers reads a decoder's value at
    the last token that is not padding.
    """
    if whole:
        name_outputs(model.config, meaning)
        model.save_pretrained(str(folder))
    copy_tokenizer(base, folder)
    pad = free_pad(base)
    if not is_encoder(model.config) and pad is not None and pad.id == model.config.pad_token_id:
        name_padding(folder, pad)
    write_meaning(folder, meaning)


def name_padding(folder: Path, pad: PadToken) -> None:
    """Make `pad` the padding token of the folder's tokenizer."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if path.is_file():
            settings = {**read_json_object(path), "pad_token": pad.text}
            path.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def copy_tokenizer(source: Path, folder: Path, new: NewTokens = PLAIN) -> None:
    """The tokenizer, chat template and generation config, byte for byte but for tokens that are new."""
    for name in TOKENIZER_FILES:
        if check_file(source / name).exists():
            shutil.copyfile(source / name, folder / name)
    write_extended(folder, new)


def sweep_stages(run: Path) -> list[Path]:
    """Remove folders of weights that a kill left half written or half replaced; only the run's owner may call it."""
    left = [path for pattern in (".tmp-*", ".old-*") for path in run.glob(pattern) if path.is_dir()]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return left


def swap(stage: Path, final: Path) -> None:
    """Put a finished folder in place of an older one."""
    old = final.with_name(f".old-{final.name}-{uuid.uuid4().hex[:8]}")
    if final.exists():
        os.replace(final, old)
    os.replace(stage, final)
    shutil.rmtree(old, ignore_errors=True)
