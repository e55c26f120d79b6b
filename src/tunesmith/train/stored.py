"""Tensors of a safetensors file, each read when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.train.durable import DTYPES

TYPES = {name: dtype for dtype, name in DTYPES.items()}


class Stored(Mapping[str, Tensor]):
    """Of a file that was verified; read by calls, so that a tensor nobody holds takes no memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            self.entries = json.loads(file.read(length))
        self.entries.pop("__metadata__", None)
        self.start = 8 + length

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        begin, end = entry["data_offsets"]
        if begin == end:
            return torch.empty(entry["shape"], dtype=TYPES[entry["dtype"]])
        content = bytearray(end - begin)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start + begin)
            rest = memoryview(content)
            while len(rest) and (count := file.readinto(rest)):
                rest = rest[count:]
        return torch.frombuffer(content, dtype=TYPES[entry["dtype"]]).view(entry["shape"])

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)
