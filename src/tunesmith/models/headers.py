"""Names, types and shapes of a checkpoint's tensors, read from safetensors headers alone and checked byte by byte."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from tunesmith.contained import check_contained, check_file
from tunesmith.errors import ModelError, Unsafe, Where
from tunesmith.models.safety import read_json_object, refuse_pickle

MAX_HEADER_BYTES = 10_000_000  # of some 90,000 tensors in one file
MAX_NAMED = 20
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

# https://github.com/huggingface/safetensors#format; sizes in bits, because some types are narrower than a byte
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


class TensorInfo(NamedTuple):
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * BITS[self.dtype] // 8


def read_headers(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of the model in `folder`, sharded or not; no weight is read.

    Raises ModelError E082 (damaged file, naming file and tensor) or E083 (shards), Unsafe E085 for pickles.
    """
    check_contained(folder)
    index = folder / INDEX
    if index.is_file():
        return _read_shards(folder, index)
    single = folder / SINGLE
    if single.is_file():
        return read_header(single)
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return read_header(found[0])
    if found:
        names = [path.name for path in found[:MAX_NAMED]]
        message = f"{len(found)} safetensors files, but no {INDEX} that says which belong to the model"
        raise ModelError("E083", message, where=Where(str(folder)), evidence=names)
    refuse_pickles(folder)
    raise ModelError(
        "E083",
        f"no weights in {folder}: there is no {SINGLE}",
        where=Where(str(folder)),
        fixes=["download the model's safetensors files"],
    )


def refuse_pickles(folder: Path) -> None:
    """Unsafe E085 when a file of the folder is a pickle by its content."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stat().st_size > 1:
            try:
                refuse_pickle(path)
            except OSError:
                continue  # what cannot be opened is not loaded either


def _read_shards(folder: Path, index: Path) -> dict[str, TensorInfo]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelError("E083", "the index has no weight_map", where=Where(str(index), field="weight_map"))
    shards = sorted(set(weight_map.values()))
    outside = [name for name in shards if "/" in name or "\\" in name or name in ("", ".", "..")]
    if outside:
        message = f"the index names a file outside its folder: {outside[0][:80]!r}"
        raise Unsafe("E083", message, where=Where(str(index)))
    present = {path.name for path in folder.glob("*.safetensors")}
    problems = [f"missing shard {name}" for name in shards if name not in present]
    problems += [f"{name} is not in the index" for name in sorted(present - set(shards))]
    found: dict[str, TensorInfo] = {}
    for shard in shards:
        if shard not in present:
            continue
        tensors = read_header(folder / shard)
        problems += [f"{name} stands in two shards, the second is {shard}" for name in tensors.keys() & found.keys()]
        expected = {name for name, file in weight_map.items() if file == shard}
        problems += [f"{shard} lacks {name}" for name in sorted(expected - tensors.keys())]
        problems += [
            f"{shard} holds {name}, which the index does not name" for name in sorted(tensors.keys() - expected)
        ]
        found |= tensors
    if problems:
        raise ModelError(
            "E083",
            f"the shards and the index disagree in {len(problems)} places",
            where=Where(str(index)),
            evidence=problems[:MAX_NAMED],
            fixes=["download the model again; a finished download is not fetched twice"],
        )
    return found


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, every offset checked against the file's size."""
    check_file(path)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise _damaged(path, "it is not a file")
        refuse_pickle(path)
        raw, length = _raw_header(path, size)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and path.parent.is_dir():
            refuse_pickles(path.parent)  # what is there in its place
        raise ModelError("E082", f"{path.name} cannot be read: {error.strerror}", where=Where(str(path))) from error
    try:
        header = json.loads(raw)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError) as error:
        raise _damaged(path, f"the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise _damaged(path, "the header is not an object")
    header.pop("__metadata__", None)
    spans = {name: _check_tensor(path, name, entry, size - 8 - length) for name, entry in header.items()}
    _check_layout(path, [(begin, end, name) for name, (begin, end, _) in spans.items()], size - 8 - length)
    return {name: info for name, (_, _, info) in spans.items()}


def _raw_header(path: Path, size: int) -> tuple[bytes, int]:
    """The bytes of the header, and how many; bounded, since what they become takes far more memory."""
    if size < 8:
        raise _damaged(path, f"the file has {size} bytes, too few for a header")
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if MAX_HEADER_BYTES < length <= size - 8:
            raise _damaged(path, f"the header has {length:,} bytes; at most {MAX_HEADER_BYTES:,} are read")
        if length > size - 8:
            raise _damaged(path, f"the header claims {length:,} bytes, the file has {size:,}")
        raw = file.read(length)
    marks = sum(raw.count(mark) for mark in b"{[,")
    if marks > length // 5 + 64:  # a tensor's entry has nine in sixty bytes; every one costs a Python object
        raise _damaged(path, f"the header is not a list of tensors: it has {marks:,} values in {length:,} bytes")
    return raw, length


def _check_tensor(path: Path, name: str, entry: Any, room: int) -> tuple[int, int, TensorInfo]:
    if not isinstance(entry, dict):
        raise _damaged(path, "its entry is not an object", name)
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _damaged(path, f"unknown type {str(dtype)[:40]!r}", name)
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise _damaged(path, "shape and data_offsets must be lists of whole numbers", name)
    begin, end = offsets
    if begin > end or end > room:
        raise _damaged(path, f"its data would end at byte {end:,}, the file has {room:,}: is it truncated?", name)
    info = TensorInfo(dtype, tuple(shape))
    if len(shape) > 16 or (info.numel * BITS[dtype] + 7) // 8 != end - begin:
        raise _damaged(path, f"shape {shape} of {dtype} does not fill its {end - begin:,} bytes", name)
    return begin, end, info


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(entry) is int and 0 <= entry < 2**63 for entry in value)


def _check_layout(path: Path, spans: Iterable[tuple[int, int, str]], room: int) -> None:
    position, before = 0, "the header"
    for begin, end, name in sorted(spans):
        if begin != position:
            word = "overlaps" if begin < position else "leaves a hole after"
            raise _damaged(path, f"its data {word} {before}", name)
        position, before = end, name
    if position != room:
        raise _damaged(path, f"{room - position:,} bytes follow the last tensor")


def _damaged(path: Path, reason: str, tensor: str | None = None) -> ModelError:
    subject = path.name if tensor is None else f"{path.name}, tensor {tensor[:120]}"
    return ModelError(
        "E082",
        f"{subject}: {reason}",
        where=Where(str(path), field=tensor and tensor[:120]),
        fixes=["download or copy the file again; compare its size and sha256 with the source"],
    )
