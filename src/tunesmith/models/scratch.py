"""Memory that is taken once and then written over: scratch for figures that are used up at once, loans for those kept.

Fresh memory costs a processor more than most of what is computed in it: the pages of a large block are handed out, and
cleared, one by one. A GPU keeps its own store of freed blocks, so there nothing is kept here.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor


class Scratch(threading.local):
    """One growing block for each name and type, in each thread."""

    def __init__(self) -> None:
        self.blocks: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Uninitialised memory that is the caller's until somebody takes the same name again."""
        count = math.prod(shape)
        if device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=device)
        block = self.blocks.get((name, dtype))
        if block is None or len(block) < count:
            self.blocks.pop((name, dtype), None)
            block = self.blocks[name, dtype] = torch.empty(count, dtype=dtype)
        return block[:count].view(*shape)


SCRATCH = Scratch()


def scratch(name: str, shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory of that shape on the device of `like`, of its type unless another is given."""
    return SCRATCH.take(name, shape, dtype or like.dtype, like.device)


class Loan:
    """Holds a block; it can be lent again when nobody holds this any more."""

    __slots__ = ("block", "free")

    def __init__(self, block: Tensor, free: list[Tensor]) -> None:
        self.block, self.free = block, free

    def __del__(self) -> None:
        self.free.append(self.block)


FREE: dict[tuple[str, torch.dtype], list[Tensor]] = {}


def lend(name: str, shape: Sequence[int], like: Tensor, loans: list[Loan]) -> Tensor:
    """Uninitialised memory for as long as `loans` is held; a name stands for figures of about one size."""
    if like.device.type != "cpu":
        return like.new_empty(shape)
    free = FREE.setdefault((name, like.dtype), [])
    count = math.prod(shape)
    block = free.pop() if free else like.new_empty(count)
    if len(block) < count:  # a larger batch than ever: all blocks go, which leaves one room and no holes between them
        for blocks in FREE.values():
            blocks.clear()
        block = like.new_empty(count)
    loans.append(Loan(block, free))
    return block[:count].view(*shape)
