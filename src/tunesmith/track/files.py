"""Small files of a run directory: replaced in one go, read strictly, disk errors in words."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from tunesmith.errors import BadInput, Fix, MachineError, Where
from tunesmith.redaction import redacted
from tunesmith.regular import read_regular
from tunesmith.track.limits import NO_FILE, no_files

PLAIN = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than this process or file system may write",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk reports an input/output error",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
}
LARGEST = 16_000_000  # bytes of a small file of a run
NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
SPACE = Fix("free some space or choose another run.folder, then resume", effect="older checkpoints stay valid")


def disk_error(error: OSError, path: Path) -> MachineError:
    """An OSError on a file of the run directory as MachineError E194."""
    if error.errno in NO_FILE:
        return no_files(error, f"cannot write {path.name}")
    reason = PLAIN.get(error.errno or 0, error.strerror or "unknown error")
    evidence = []
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(next(parent for parent in path.parents if parent.exists())).free
        evidence.append(f"free: {free / 1e6:,.0f} MB")
    return MachineError(
        "E194",
        f"cannot write {path.name}: {reason}",
        where=Where(str(path)),
        evidence=evidence,
        fixes=["name a file in a folder that is there"] if error.errno in NOWHERE else [SPACE],
    )


def replace_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Write the whole file in one go: readers see the old text or the new one, never a part. One writer per file.

    Secrets in the text are covered.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(redacted(text))
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise disk_error(error, path) from error


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON; NaN and infinities become the words "NaN", "Infinity" and "-Infinity", unknown types their text."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, default=str)
    except ValueError:
        return json.dumps(finite(value), ensure_ascii=False, allow_nan=False, indent=indent, default=str)


def finite(value: Any) -> Any:
    """The same tree with words in place of NaN and infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; BadInput E193 when it is missing, damaged, too large or no regular file."""
    try:
        value = json.loads(read_regular(path, LARGEST))
    except FileNotFoundError:
        raise _damaged(path, f"{path.name} is missing") from None
    except OSError as error:
        raise _damaged(path, f"{path.name} cannot be read: {PLAIN.get(error.errno or 0, error.strerror)}") from error
    except (ValueError, RecursionError):
        raise _damaged(path, f"{path.name} is not JSON") from None
    if not isinstance(value, dict):
        raise _damaged(path, f"{path.name} holds no object")
    return value


def _damaged(path: Path, reason: str) -> BadInput:
    return BadInput("E193", reason, where=Where(str(path)))
