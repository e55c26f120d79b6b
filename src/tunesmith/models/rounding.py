"""Round numbers of rows on a CPU: oneDNN compiles its kernels anew for every number it has not met, and keeps them."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from tunesmith.types import Batch

ROUND = 64


def missing(count: int, like: Tensor) -> int:
    """Rows to add on the device of `like`; few rows are left as they are."""
    return -count % ROUND if like.device.type == "cpu" and count > ROUND else 0


def rounded(batch: Batch) -> Batch:
    """The batch with a segment behind it that sees nobody and is seen by nobody."""
    count = len(batch.tokens)
    extra = missing(count, batch.tokens)
    if extra == 0:
        return batch
    last = batch.segments.new_tensor([[count, count + extra, -1]])
    positions = torch.arange(extra, dtype=batch.positions.dtype)
    return replace(
        batch,
        tokens=pad(batch.tokens, (0, extra)),
        positions=torch.cat([batch.positions, positions]),
        segments=torch.cat([batch.segments, last]),
    )


def filled(rows: Float[Tensor, "T D"], count: int) -> Float[Tensor, "S D"]:
    """`count` rows, those behind the given ones zero."""
    return pad(rows, (0, 0, 0, count - len(rows)))


def with_more(wanted: Int[Tensor, " R"], count: int) -> Int[Tensor, " S"]:
    """Places among `count` in ascending order: those wanted, and others until their number is round."""
    extra = missing(len(wanted), wanted)
    if extra == 0 or len(wanted) + extra > count:
        return wanted
    free = torch.ones(count, dtype=torch.bool)
    free[wanted] = False
    return torch.cat([wanted, free.nonzero()[-extra:, 0]]).sort().values
