"""Numbers in 4 bits, block by block (arXiv:2305.14314): the tables, the nearest codes, and constants in 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tunesmith.models.blockwise import code_values
from tunesmith.models.quantization_config import BLOCK, CONSTANTS
from tunesmith.models.scratch import scratch

PIECE = 2**12  # blocks that are worked on at once, so that they stay in the processor's cache

# Quantiles of the normal distribution, from -1 over an exact 0 to 1 (arXiv:2305.14314 appendix E).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# A sign, two bits of exponent and one of mantissa, the largest size being 12; the code of -0 is never written.
SIZES = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
FP4 = tuple(sign * size / 12 for sign in (1, -1) for size in SIZES)
TABLES = {"nf4": NF4, "fp4": FP4}


@cache
def table_of(kind: str) -> Float[Tensor, " 16"]:
    """What the codes stand for, times the constant of their block."""
    return torch.tensor(TABLES[kind])


@cache
def pairs_of(kind: str) -> Float[Tensor, "256 2"]:
    """What both codes of a byte stand for; the first is in its upper half."""
    table = table_of(kind)
    return torch.stack([table.repeat_interleave(16), table.repeat(16)], 1)


@cache
def ascending(kind: str) -> tuple[Tensor, Tensor]:
    """The middles between values that follow each other, and the codes of these values."""
    values = dict.fromkeys(TABLES[kind])  # 0 once
    codes = sorted(values, key=float)
    places = torch.tensor([TABLES[kind].index(value) for value in codes], dtype=torch.uint8)
    ordered = torch.tensor(codes)
    return (ordered[1:] + ordered[:-1]) / 2, places


def on(table: Tensor, other: Tensor) -> Tensor:
    return table if table.device == other.device else table.to(other.device)


def pieces(count: int) -> Iterator[tuple[slice, slice, int]]:
    """Slices of so many numbers and of their blocks, and the width of these: whole blocks, and a last one."""
    whole = count // BLOCK
    for start in range(0, whole, PIECE):
        blocks = slice(start, min(start + PIECE, whole))
        yield slice(blocks.start * BLOCK, blocks.stop * BLOCK), blocks, BLOCK
    if count % BLOCK:
        yield slice(whole * BLOCK, count), slice(whole, whole + 1), count % BLOCK


@torch.no_grad()
def encode(numbers: Float[Tensor, " N"], kind: str) -> tuple[UInt8[Tensor, " M"], Float[Tensor, " B"]]:
    """Two codes in a byte, and the constant of every block; a block of zeros has the constant 0."""
    count = len(numbers)
    middles, order = (on(each, numbers) for each in ascending(kind))
    codes = scratch("codes", (count + count % 2,), numbers, torch.uint8)
    codes[count:] = 0
    constants = torch.empty(-(-count // BLOCK), device=numbers.device)
    for part, blocks, width in pieces(count):
        piece = numbers[part].float().view(-1, width)
        torch.amax(piece.abs(), 1, out=constants[blocks])
        scaled = piece / constants[blocks].clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        codes[part] = order[torch.bucketize(scaled.view(-1), middles, out_int32=True)]
    pairs = codes.view(-1, 2)
    return (pairs[:, 0] << 4) | pairs[:, 1], constants


@torch.no_grad()
def decode(
    packed: UInt8[Tensor, " M"], constants: Float[Tensor, " B"], kind: str, out: Float[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """out = the numbers that the codes stand for, formed in fp32 and rounded once."""
    pairs = on(pairs_of(kind), packed)
    for part, blocks, width in pieces(len(out)):
        own = packed[part.start // 2 : -(-part.stop // 2)]
        found = pairs.index_select(0, own.int()).view(-1)[: part.stop - part.start].view(-1, width)
        out[part].view(-1, width).copy_(found.mul_(constants[blocks][:, None]))
    return out


@torch.no_grad()
def encode_constants(
    constants: Float[Tensor, " B"],
) -> tuple[UInt8[Tensor, " B"], Float[Tensor, " C"], Float[Tensor, " 1"]]:
    """Constants less their mean, in 8 bits of the dynamic map (arXiv:2110.02861); scales of 256 each; the mean."""
    mean = constants.mean().view(1)
    values = on(code_values(True), constants)
    middles = (values[1:] + values[:-1]) / 2
    scales = torch.empty(-(-len(constants) // CONSTANTS), device=constants.device)
    codes = torch.empty(len(constants), dtype=torch.uint8, device=constants.device)
    for number, block in enumerate((constants - mean).split(CONSTANTS)):
        scales[number] = block.abs().max()
        scaled = block / scales[number].clamp(min=torch.finfo(torch.float32).tiny)
        codes[number * CONSTANTS :][: len(block)] = torch.bucketize(scaled, middles, out_int32=True).to(torch.uint8)
    return codes, scales, mean


@torch.no_grad()
def decode_constants(
    codes: UInt8[Tensor, " B"], scales: Float[Tensor, " C"], mean: Float[Tensor, " 1"]
) -> Float[Tensor, " B"]:
    found = on(code_values(True), codes).index_select(0, codes.int())
    return found.mul_(scales.repeat_interleave(CONSTANTS)[: len(codes)]).add_(mean)
