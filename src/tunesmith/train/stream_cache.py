"""Figures per scored token, computed once per example and kept in a memory-mapped file under a content hash."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class StreamCache:
    """`counts[i]` fp32 figures of example i; several processes of one machine may share the files.

    A checksum stands beside every example's figures, so that what a power cut left half written counts as missing.
    """

    def __init__(self, folder: Path, counts: np.ndarray) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.values = open_array(folder / "values.bin", np.dtype(np.float32), int(self.offsets[-1]))
        self.checks = open_array(folder / "checks.bin", np.dtype(np.uint32), len(counts))

    def read(self, index: int) -> np.ndarray | None:
        """The figures of one example; None when they are not there yet."""
        values = self.values[self.offsets[index] : self.offsets[index + 1]]
        return np.array(values) if self.checks[index] == checksum(values) else None

    def write(self, index: int, values: np.ndarray) -> None:
        assert len(values) == self.offsets[index + 1] - self.offsets[index], "figures do not fit the example"
        self.values[self.offsets[index] : self.offsets[index + 1]] = values
        self.checks[index] = checksum(values)

    def missing(self) -> list[int]:
        return [index for index in range(len(self.checks)) if self.read(index) is None]

    def collect(self, indices: Sequence[int]) -> Float[Tensor, " K"] | None:
        """The figures of several examples end to end; None when one is missing."""
        parts = [self.read(index) for index in indices]
        found = [part for part in parts if part is not None]
        return torch.from_numpy(np.concatenate(found)) if len(found) == len(parts) else None

    def keep(self, indices: Sequence[int], values_K: Float[Tensor, " K"]) -> None:
        """Keep the figures of examples that are not there yet; what is there already stays as it is."""
        flat = values_K.float().cpu().numpy()
        start = 0
        for index in indices:
            end = start + int(self.offsets[index + 1] - self.offsets[index])
            if self.read(index) is None:
                self.write(index, flat[start:end])
            start = end
        assert start == len(flat), "the batch scores other tokens than the prepared examples"


def checksum(values: np.ndarray) -> int:
    """CRC-32, never 0, which an untouched file holds."""
    return zlib.crc32(np.ascontiguousarray(values, dtype=np.float32).data) or 1


def open_array(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """A file of `count` numbers, zero where nothing was written; processes that open it together lose nothing."""
    size = max(1, count) * dtype.itemsize
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if os.fstat(descriptor).st_size != size:
            os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)
    return np.memmap(path, dtype=dtype, mode="r+", shape=(max(1, count),))[:count]
