"""Numbers in 8 bits, block by block, by the dynamic map of arXiv:2110.02861: seven decades, finer near the largest."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

BLOCK = 256  # numbers that share a scale: the largest of their sizes
DECADES = 7
ZERO = 32768  # where the table of the smallest positive half-precision numbers begins


@cache
def code_values(signed: bool) -> Tensor:
    """The 256 numbers from -0.993 (or 0) to 1 that codes stand for, ascending."""
    values = [torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)]
    for decade in range(DECADES):
        edges = torch.linspace(0.1, 1, 2 ** (decade + (0 if signed else 1)) + 1, dtype=torch.float64)
        means = 10.0 ** (decade + 1 - DECADES) * (edges[:-1] + edges[1:]) / 2
        values += [means, -means] if signed else [means]
    return torch.cat(values).sort().values.float()


@cache
def codes_of_halves(signed: bool) -> Tensor:
    """The nearest code of every half-precision number, at its bits as an int16, plus ZERO where some are negative."""
    first = -ZERO if signed else 0
    halves = torch.arange(first, ZERO, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    values = code_values(signed)
    middles = (values[1:] + values[:-1]) / 2
    return torch.bucketize(halves, middles).to(torch.uint8)


def scales_of(numbers: int) -> int:
    return -(-numbers // BLOCK)


def decode(codes_BW: Tensor, scales_B: Tensor, signed: bool) -> Tensor:
    """The numbers of B blocks of W codes."""
    table = on(code_values(signed), codes_BW)
    return table.index_select(0, codes_BW.reshape(-1).int()).view(codes_BW.shape).mul_(scales_B[:, None])


def encode(values_BW: Tensor, codes_BW: Tensor, scales_B: Tensor, signed: bool) -> None:
    """Write codes and scales of B blocks; a value, rounded to half precision of its scale, gets the nearest code.

    A block of zeros has scale 0 and decodes to zeros. `values_BW` is used up.
    """
    torch.amax(values_BW.abs() if signed else values_BW, 1, out=scales_B)
    halves = values_BW.mul_(scales_B.clamp(min=1e-38).reciprocal_()[:, None]).half()
    places = halves.view(torch.int16).reshape(-1).int()
    if signed:
        places += ZERO
    torch.index_select(on(codes_of_halves(signed), codes_BW), 0, places, out=codes_BW.view(-1))


def on(table: Tensor, other: Tensor) -> Tensor:
    return table if table.device == other.device else table.to(other.device)
