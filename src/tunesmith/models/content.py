"""What a folder of weights holds, to the last bit: models of one shape differ only here."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from tunesmith.errors import ModelError, Where

NAMES = ("*.safetensors", "config.json", "adapter_config.json", "tokenizer.json", "chat_template.jinja")


def content_hash(folder: Path) -> str:
    """sha256 over names and bytes of weights, config, tokenizer and template; about a second per gigabyte, once."""
    try:
        paths = sorted(path for name in NAMES for path in folder.glob(name))
        stamps = [(path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        return _hash(tuple(stamps))
    except OSError as error:
        message = f"the weights cannot be read: {error.strerror}"
        raise ModelError("E278", message, where=Where(str(folder))) from error


@functools.cache
def _hash(stamps: tuple[tuple[Path, int, int], ...]) -> str:
    """Size and time of every file are part of the key, so that a changed file is read again."""
    total = hashlib.sha256()
    for path, _, _ in stamps:
        with path.open("rb") as file:
            total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
