"""Walks a GGUF header with every length checked against the file, before any library trusts it."""

from __future__ import annotations

import math
import struct
from functools import cache
from mmap import ACCESS_READ, mmap
from pathlib import Path

from tunesmith.errors import ModelError, Where

# https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
MAGIC = b"GGUF"
LENGTH = struct.Struct("<Q")
SHORTEST = 24  # bytes of a header that holds nothing
VERSIONS = (2, 3)
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # value type -> bytes
STRING, ARRAY = 8, 9
MAX_ENTRIES = 100_000
MAX_VALUES = 2_000_000  # in all arrays; a vocabulary of 262,144 tokens with its merges has 1.3 million
MAX_DIMENSIONS = 4


@cache
def block_sizes() -> dict[int, tuple[int, int]]:
    """By type of tensor: how many weights are stored together, and in how many bytes."""
    from gguf.constants import GGML_QUANT_SIZES

    return {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}


def is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def check_gguf(path: Path) -> None:
    """ModelError E082 when the header cannot be walked to its end within the file."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size < SHORTEST:
                raise ModelError("E082", f"{path.name} is too short for a header", where=Where(str(path)))
            with mmap(file.fileno(), 0, access=ACCESS_READ) as content:
                _Walker(content, path).walk()
    except OSError as error:
        raise ModelError("E082", f"{path.name} cannot be read: {error.strerror}", where=Where(str(path))) from error


class _Walker:
    def __init__(self, content: mmap, path: Path) -> None:
        self.content = content
        self.path = path
        self.size = len(content)
        self.position = 0
        self.at = "the header"
        self.values = 0
        self.spans: list[tuple[int, int, str]] = []  # where each tensor begins and ends, after the header

    def walk(self) -> None:
        if self.take(4) != MAGIC:
            raise self.damaged("it does not begin with GGUF")
        version = self.number("<I")
        if version not in VERSIONS:
            raise self.damaged(f"version {version}; versions {VERSIONS} are known")
        tensors, entries = self.number("<Q"), self.number("<Q")
        if tensors > MAX_ENTRIES or entries > MAX_ENTRIES:
            raise self.damaged(f"{tensors:,} tensors and {entries:,} settings are claimed")
        known: set[str] = set()
        for index in range(entries):
            self.at = f"setting {index}"
            name = self.string()
            self.at = f"setting {name[:80]!r}"
            if name in known:
                raise self.damaged("it stands twice")
            known.add(name)
            self.skip_value(self.number("<I"))
        known.clear()
        for index in range(tensors):
            self.at = f"tensor {index}"
            name = self.string()
            self.at = f"tensor {name[:80]!r}"
            if name in known:
                raise self.damaged("it stands twice")
            known.add(name)
            self.check_tensor(name)
        self.check_spans()

    def check_tensor(self, name: str) -> None:
        dimensions = self.number("<I")
        if dimensions > MAX_DIMENSIONS:
            raise self.damaged(f"{dimensions} dimensions")
        shape = [self.number("<Q") for _ in range(dimensions)]
        kind = self.number("<I")
        offset = self.number("<Q")
        # no quantisation goes below one bit per weight
        if offset > self.size or math.prod(shape) > 16 * self.size:
            raise self.damaged(f"shape {shape} at byte {offset:,} lies outside the file's {self.size:,} bytes")
        if kind not in block_sizes():
            raise self.damaged(f"unknown type {kind}")
        weights, width = block_sizes()[kind]
        if shape and shape[0] % weights:
            raise self.damaged(f"rows of {shape[0]:,} weights, which are stored {weights} together")
        self.spans.append((offset, offset + math.prod(shape) // weights * width, name))

    def check_spans(self) -> None:
        """Every byte belongs to one tensor at most, so that what is read is never more than the file."""
        reached = 0
        for begin, end, name in sorted(self.spans):
            self.at = f"tensor {name[:80]!r}"
            if begin < reached:
                raise self.damaged("its bytes belong to another tensor too")
            if end > self.size - self.position:
                raise self.damaged(
                    f"it ends {end:,} bytes after the header; the file has {self.size - self.position:,}"
                )
            reached = end

    def skip_value(self, kind: int) -> None:
        if kind in WIDTHS:
            self.skip(WIDTHS[kind])
        elif kind == STRING:
            self.skip(self.number("<Q"))
        elif kind == ARRAY:
            inner, count = self.number("<I"), self.number("<Q")
            self.values += min(count, MAX_VALUES + 1)
            if self.values > MAX_VALUES:
                raise self.damaged(f"an array of {count:,} values; at most {MAX_VALUES:,} are read in all")
            if inner in WIDTHS:
                self.skip(WIDTHS[inner] * count)
            elif inner == STRING and count * 8 <= self.size:
                self.skip_strings(count)
            else:
                raise self.damaged(f"an array of {count:,} values of type {inner}")
        else:
            raise self.damaged(f"a value of unknown type {kind}")

    def skip_strings(self, count: int) -> None:
        position, content, last = self.position, self.content, self.size - 8
        for _ in range(count):
            if position > last:
                raise self.damaged("the file ends inside it")
            position += 8 + LENGTH.unpack_from(content, position)[0]
        if position > self.size:
            raise self.damaged("the file ends inside it")
        self.position = position

    def string(self) -> str:
        length = self.number("<Q")
        if length > 65_536:
            raise self.damaged(f"a name of {length:,} bytes")
        return self.take(length).decode("utf-8", "replace")

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def take(self, length: int) -> bytes:
        found = self.content[self.position : self.position + length]
        if len(found) != length:
            raise self.damaged("the file ends inside it")
        self.position += length
        return found

    def skip(self, length: int) -> None:
        if self.position + length > self.size:
            raise self.damaged(f"{length:,} bytes are claimed, the file ends before")
        self.position += length

    def damaged(self, reason: str) -> ModelError:
        return ModelError(
            "E082",
            f"{self.path.name}, {self.at}: {reason}",
            where=Where(str(self.path)),
            fixes=["download or copy the file again; compare its size and sha256 with the source"],
        )
