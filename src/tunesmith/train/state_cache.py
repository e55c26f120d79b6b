"""States of every token, kept per example in memory or in a file: the same bytes out as in."""

from __future__ import annotations

import os
import shutil
import weakref
import zlib
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from tunesmith.errors import Fix, MachineError, Where
from tunesmith.train.stream_cache import open_array

FIELD = "train.cache_trunk"
Rows = UInt8[np.ndarray, "T B"]  # the bytes of each token's state


class Store(Protocol):
    """Numbered bytes, zero where nothing was written."""

    def read(self, start: int, into: Rows) -> None: ...

    def write(self, start: int, rows: Rows) -> None: ...


class InMemory:
    def __init__(self, size: int) -> None:
        self.bytes = np.zeros(size, dtype=np.uint8)

    def read(self, start: int, into: Rows) -> None:
        into.reshape(-1)[:] = self.bytes[start : start + into.size]

    def write(self, start: int, rows: Rows) -> None:
        self.bytes[start : start + rows.size] = rows.reshape(-1)


class InFile:
    """Read and written by calls, not mapped: pages of a mapping count as memory of the run, and a full disk kills it.

    Raises MachineError E198 when the disk has no room.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        weakref.finalize(self, os.close, self.file)
        status = os.fstat(self.file)
        free = shutil.disk_usage(path.parent).free + 512 * status.st_blocks
        if size > free:
            raise no_room(path.parent, size, free)
        if status.st_size != size:
            os.ftruncate(self.file, size)

    def read(self, start: int, into: Rows) -> None:
        os.preadv(self.file, [into.data], start)

    def write(self, start: int, rows: Rows) -> None:
        try:
            if os.pwrite(self.file, rows.data, start) == rows.size:
                return
            reason = None  # the disk became full in the middle
        except OSError as error:
            reason = error
        raise no_room(self.path.parent, rows.size, shutil.disk_usage(self.path.parent).free) from reason


def no_room(folder: Path, size: int, free: int) -> MachineError:
    return MachineError(
        "E198",
        f"the states of the frozen layers take {size / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free at {folder}",
        where=Where(field=FIELD),
        fixes=[
            Fix("free some room", command="tunesmith doctor --prune-older-than 30"),
            Fix(f"{FIELD}=off", {FIELD: "off"}, effect="the frozen layers are computed in every epoch"),
        ],
    )


class StateCache:
    """`width` bytes for each token of each example; with a folder, several processes of one machine may share it.

    A checksum stands beside every example's states, so that what was half written counts as missing.
    """

    def __init__(self, folder: Path | None, lengths: np.ndarray, width: int) -> None:
        self.width = width
        self.offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        size = width * int(self.offsets[-1])
        self.is_shared = folder is not None
        self.store: Store = InMemory(size) if folder is None else InFile(folder / "states.bin", size)
        self.checks = np.zeros(len(lengths), dtype=np.uint32)
        if folder is not None:
            self.checks = open_array(folder / "checks.bin", np.dtype(np.uint32), len(lengths))

    def read(self, index: int) -> Rows | None:
        """The states of one example; None when they are not there yet."""
        if not self.checks[index]:
            return None
        rows = np.empty((self.length(index), self.width), dtype=np.uint8)
        self.store.read(self.width * int(self.offsets[index]), rows)
        return rows if self.checks[index] == checksum(rows) else None

    def write(self, index: int, rows: Rows) -> None:
        assert rows.shape == (self.length(index), self.width), "states do not fit the example"
        self.store.write(self.width * int(self.offsets[index]), rows)
        self.checks[index] = checksum(rows)

    def length(self, index: int) -> int:
        return int(self.offsets[index + 1] - self.offsets[index])

    def missing(self) -> set[int]:
        return {index for index in range(len(self.checks)) if self.read(index) is None}


def checksum(rows: Rows) -> int:
    """CRC-32, never 0, which an untouched file holds."""
    return zlib.crc32(rows.data) or 1
