"""What a folder of weights holds, to the last bit: models of one shape differ only here."""

from __future__ import annotations

import functools
import hashlib
import re
import shlex
from pathlib import Path

from tunesmith.contained import check_contained
from tunesmith.errors import Fix, ModelError, Where
from tunesmith.regular import open_regular

NAMES = ("*.safetensors", "config.json", "adapter_config.json", "tokenizer.json", "chat_template.jinja")
PUBLISHED = re.compile(r"[0-9a-f]{64}\Z")


def content_hash(folder: Path) -> str:
    """sha256 over names and bytes of weights, config, tokenizer and template; about a second per gigabyte, once."""
    check_contained(folder)
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
        with open_regular(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        check_published(path, digest)
        total.update(f"{path.name}\0{digest}\n".encode())
    return total.hexdigest()


def check_published(path: Path, digest: str) -> None:
    """ModelError E516 when a file in the hub's cache, which names large files by their sha256, holds something else."""
    stored = path.resolve()
    if stored.parent.name != "blobs" or not PUBLISHED.match(stored.name) or stored.name == digest:
        return
    raise ModelError(
        "E516",
        f"{path.name} is damaged: it does not hold what the hub published",
        where=Where(str(path)),
        evidence=[f"published sha256 {stored.name}", f"the file's  sha256 {digest}"],
        fixes=[Fix("remove the file and fetch it again", command=f"rm {shlex.quote(str(stored))}")],
    )
