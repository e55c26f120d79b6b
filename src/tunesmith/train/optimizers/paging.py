"""Where states wait that are paged: how many bytes are outside of memory, and how many in it at most."""

from __future__ import annotations

import mmap
from collections.abc import Mapping

from tunesmith.train.optimizers.base import OptimizerConfig, numbers

Shapes = Mapping[str, tuple[int, ...]]

SMALLEST = 2**16  # bytes of a parameter's states that are worth a part of the file
SMALLEST_ON_GPU = 10**5  # numbers of a parameter from which on bitsandbytes pages its states


def is_paged(optimizer: OptimizerConfig, name: str, shape: tuple[int, ...], device: str) -> bool:
    if optimizer.paging == "off":
        return False
    return numbers(shape) >= SMALLEST_ON_GPU if device == "cuda" else optimizer.state_bytes(name, shape) >= SMALLEST


def paged_bytes(optimizer: OptimizerConfig, shapes: Shapes, device: str) -> int:
    """Of states in the file, or on a GPU in memory that it shares with the host."""
    return sum(optimizer.state_bytes(*one) for one in shapes.items() if is_paged(optimizer, *one, device))


def resident_bytes(optimizer: OptimizerConfig, shapes: Shapes, device: str) -> int:
    """Of states in memory at most: all that are not paged, and on a CPU those of the parameter at work."""
    sizes = [(is_paged(optimizer, *one, device), optimizer.state_bytes(*one)) for one in shapes.items()]
    at_work = max((size for paged, size in sizes if paged), default=0) if device == "cpu" else 0
    return at_work + sum(size for paged, size in sizes if not paged)


def file_bytes(optimizer: OptimizerConfig, shapes: Shapes) -> int:
    """Of the file: the states of every parameter begin on a page of their own."""
    sizes = [optimizer.state_bytes(*one) for one in shapes.items() if is_paged(optimizer, *one, "cpu")]
    return sum(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in sizes)
