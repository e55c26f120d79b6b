"""What a folder of weights holds, to the last bit: models of one shape differ only here."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tunesmith.errors import ModelError, Where

NAMES = ("*.safetensors", "config.json", "adapter_config.json", "tokenizer.json", "chat_template.jinja")


def content_hash(folder: Path) -> str:
    """sha256 over names and bytes of weights, config, tokenizer and template; about a second per gigabyte."""
    total = hashlib.sha256()
    try:
        for path in sorted(path for name in NAMES for path in folder.glob(name)):
            with path.open("rb") as file:
                total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    except OSError as error:
        message = f"the weights cannot be read: {error.strerror}"
        raise ModelError("E278", message, where=Where(str(folder))) from error
    return total.hexdigest()
