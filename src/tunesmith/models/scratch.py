"""Memory for figures that are used up before the next ones are asked for: taken once, then written over."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor


class Scratch(threading.local):
    """One growing block for each name and type, in each thread.

    Fresh memory costs a processor more than most of what is computed in it: the pages of a large block are handed out,
    and cleared, one by one. A GPU keeps its own store of freed blocks, so there nothing is kept here.
    """

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
