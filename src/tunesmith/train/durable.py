"""Durable files: hashed while written, synced, and disk errors in words."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import Fix, MachineError
from tunesmith.faults import fault
from tunesmith.track.files import PLAIN
from tunesmith.track.limits import NO_FILE, no_files

CHUNK = 8 * 1024 * 1024

# Names of the safetensors format: https://github.com/huggingface/safetensors#format
DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
}

SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished file as the manifest lists it."""

    size: int
    sha256: str


def write_file(path: Path, pieces: Iterable[bytes | memoryview], step: int) -> Entry:
    """Write a new file, hash it on the way, and sync it; OSError where the disk refuses."""
    fault("ckpt.before_open", step, path)
    digest = hashlib.sha256()
    size = 0
    try:
        with path.open("xb", buffering=0) as file:
            for piece in pieces:
                rest = memoryview(piece)
                digest.update(rest)
                while len(rest):
                    written = file.write(rest)
                    size += written
                    rest = rest[written:]
                fault("ckpt.mid_write", step, path)
            fault("ckpt.before_fsync", step, path)
            os.fsync(file.fileno())
            fault("ckpt.after_fsync", step, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a refused write does not say which file it was
        raise
    return Entry(size, digest.hexdigest())


def write_json(path: Path, value: Any, step: int) -> Entry:
    return write_text(path, to_json(value), step)


def write_text(path: Path, text: str, step: int) -> Entry:
    content = text.encode()
    half = len(content) // 2
    return write_file(path, (content[:half], content[half:]), step)


def to_json(value: Any) -> str:
    """Strict JSON, the same text for the same value; ValueError for NaN and infinities."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, indent=1) + "\n"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], step: int) -> Entry:
    """Write a safetensors file; tensors that share memory are written twice, strides are not kept."""
    # wide types first, as the official writer does, so that every tensor is aligned
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {}
    position = 0
    for name in names:
        tensor = tensors[name]
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return write_file(path, _tensor_pieces(text, (tensors[name] for name in names)), step)


def _tensor_pieces(header: bytes, tensors: Iterable[Tensor]) -> Iterator[bytes | memoryview]:
    yield len(header).to_bytes(8, "little") + header
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        for start in range(0, len(flat), CHUNK):
            yield flat[start : start + CHUNK].data


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_space(folder: Path, need: int) -> None:
    """OSError (ENOSPC) when the disk of `folder` has less than `need` bytes free."""
    if shutil.disk_usage(folder).free < need:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def machine_error(error: OSError, doing: str, folder: Path, need: int) -> MachineError:
    """An OSError while saving, in words: what failed, how much is needed and free, and at which mount."""
    if error.errno in NO_FILE:
        return no_files(error, doing)
    reason = PLAIN.get(error.errno or 0, error.strerror or "unknown error")
    free = shutil.disk_usage(_existing(folder)).free
    evidence = [f"need {_size(need)}, free {_size(free)} at {_mount(folder)}"]
    if error.filename:
        evidence.append(f"file: {error.filename}")
    fixes = [Fix(f"free {_size(need)} at {_mount(folder)}, then resume")] if error.errno in SPACE else []
    run = shlex.quote(str(folder.parent))
    moved = f"mv {run} OTHER_DISK/ && tunesmith runs resume OTHER_DISK/{shlex.quote(folder.parent.name)}"
    fixes.append(Fix("move the run to another disk", command=moved, effect="older checkpoints stay valid"))
    return MachineError("E112", f"{doing}: {reason}", evidence=evidence, fixes=fixes)


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _mount(path: Path) -> Path:
    start = _existing(path).resolve()
    return next(parent for parent in (start, *start.parents) if os.path.ismount(parent))


def _size(count: float) -> str:
    """`1536` as `1.5 kB`, in powers of 1000 as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
