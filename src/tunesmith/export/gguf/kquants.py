"""Blocks of 256 weights with scales of scales (Q2_K to Q6_K), each scale searched for the least squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

BLOCK = 256
CHUNK = 4096  # blocks at a time: bounds the memory of the search
Floats = NDArray[np.floating[Any]]
Bytes = NDArray[np.integer[Any]]
K_TYPES = (Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K)


def quantize_k(weights: Floats, kind: Type) -> Bytes:
    """Rows whose length is a multiple of 256 as bytes of the type."""
    rows, width = weights.shape
    blocks = np.ascontiguousarray(weights, dtype=np.float32).reshape(-1, BLOCK)
    parts = [pack(blocks[at : at + CHUNK], kind) for at in range(0, len(blocks), CHUNK)]
    return np.concatenate(parts).reshape(rows, width // BLOCK * parts[0].shape[1])


def pack(blocks: Floats, kind: Type) -> Bytes:
    if kind == Type.Q2_K:
        return pack_two(blocks)
    if kind == Type.Q3_K:
        return pack_three(blocks)
    if kind == Type.Q6_K:
        return pack_six(blocks)
    return pack_offset(blocks, 4 if kind == Type.Q4_K else 5)


def pack_two(blocks: Floats) -> Bytes:
    """x = d s q - m t with q in 0..3, one s and t of 4 bits for each 16 weights."""
    n = len(blocks)
    x = blocks.reshape(n, 16, 16)
    scales, lowest = offset_scales(x, 3)
    d = halved(largest(scales) / 15)
    m = halved(largest(lowest) / 15)
    s = np.clip(np.rint(divided(scales, d)), 0, 15)
    t = np.clip(np.rint(divided(lowest, m)), 0, 15)
    q = np.clip(np.rint(divided(x + (m * t)[..., None], (d * s)[..., None])), 0, 3).astype(np.uint8)
    both = s.astype(np.uint8) | (t.astype(np.uint8) << 4)
    return np.hstack([both, two_bits(q), d.astype(np.float16).view(np.uint8), m.astype(np.float16).view(np.uint8)])


def pack_three(blocks: Floats) -> Bytes:
    """x = d s q with q in -4..3, one s of 6 bits, -32..31, for each 16 weights."""
    n = len(blocks)
    x = blocks.reshape(n, 16, 16)
    scales = symmetric_scales(x, 4)
    furthest = np.take_along_axis(scales, np.abs(scales).argmax(1)[:, None], 1)
    d = halved(furthest / -32)
    s = np.clip(np.rint(divided(scales, d)), -32, 31)
    q = np.clip(np.rint(divided(x, (d * s)[..., None])), -4, 3).astype(np.int8) + 4
    q = q.astype(np.uint8)
    place = np.arange(8, dtype=np.uint8)[None, :, None]
    high = np.bitwise_or.reduce((q.reshape(n, 8, 32) >> 2) << place, axis=1)
    u = (s + 32).astype(np.uint8)
    upper = (u >> 4).reshape(n, 4, 4)
    third = upper[:, 0] | (upper[:, 1] << 2) | (upper[:, 2] << 4) | (upper[:, 3] << 6)
    low = (u[:, :8] & 15) | ((u[:, 8:] & 15) << 4)
    return np.hstack([high, two_bits(q & 3), low, third, d.astype(np.float16).view(np.uint8)])


def two_bits(q: Bytes) -> Bytes:
    """256 numbers of 2 bits in 64 bytes, those of a byte 32 apart."""
    quarters = q.reshape(len(q), 2, 4, 32)
    packed = quarters[:, :, 0] | (quarters[:, :, 1] << 2) | (quarters[:, :, 2] << 4) | (quarters[:, :, 3] << 6)
    return packed.reshape(len(q), 64)


def pack_six(blocks: Floats) -> Bytes:
    """x = d s q with q in -32..31, one s of 8 bits for each 16 weights."""
    n = len(blocks)
    x = blocks.reshape(n, 16, 16)
    scales = symmetric_scales(x, 32)
    d = halved(largest(np.abs(scales)) / 127)
    whole = np.clip(np.rint(divided(scales, d)), -128, 127)
    q = np.clip(np.rint(divided(x, (d * whole)[..., None])), -32, 31).astype(np.int16) + 32
    half = q.reshape(n, 2, 128).astype(np.uint8)
    low = (half[..., :64] & 15) | ((half[..., 64:] & 15) << 4)
    high = two_bits(half >> 4)
    signed = whole.astype(np.int8).view(np.uint8)
    return np.hstack([low.reshape(n, -1), high, signed, d.astype(np.float16).view(np.uint8)])


def pack_offset(blocks: Floats, bits: int) -> Bytes:
    """x = d s q - m t with q of 4 or 5 bits, one s and t of 6 bits for each 32 weights."""
    n = len(blocks)
    x = blocks.reshape(n, 8, 32)
    scales, lowest = offset_scales(x, (1 << bits) - 1)
    d = halved(largest(scales) / 63)
    m = halved(largest(lowest) / 63)
    s = np.clip(np.rint(divided(scales, d)), 0, 63)
    t = np.clip(np.rint(divided(lowest, m)), 0, 63)
    q = np.rint(divided(x + (m * t)[..., None], (d * s)[..., None]))
    q = np.clip(q, 0, (1 << bits) - 1).astype(np.uint8)
    pairs = (q & 15).reshape(n, 4, 2, 32)
    low = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(n, -1)
    parts = [d.astype(np.float16).view(np.uint8), m.astype(np.float16).view(np.uint8), six_bits(s, t)]
    if bits == 5:
        place = np.arange(8, dtype=np.uint8)[None, :, None]
        parts.append(np.bitwise_or.reduce((q >> 4) << place, axis=1))
    return np.hstack([*parts, low])


def six_bits(s: Floats, t: Floats) -> Bytes:
    """Eight scales and eight minima of 6 bits in 12 bytes."""
    s8, t8 = s.astype(np.uint8), t.astype(np.uint8)
    first = s8[:, :4] | ((s8[:, 4:] >> 4) << 6)
    second = t8[:, :4] | ((t8[:, 4:] >> 4) << 6)
    return np.hstack([first, second, (s8[:, 4:] & 15) | ((t8[:, 4:] & 15) << 4)])


def halved(x: Floats) -> Floats:
    """As a number of 16 bits."""
    return x.astype(np.float16).astype(np.float32)


def largest(x: Floats) -> Floats:
    """Of each row, kept as a column."""
    return np.asarray(x.max(1))[:, None]


def divided(x: Floats, by: Floats) -> Floats:
    """x / by, 0 where `by` is."""
    return np.where(by == 0, np.float32(0), x / np.where(by == 0, np.float32(1), by)).astype(np.float32)


def symmetric_scales(x: Floats, levels: int) -> Floats:
    """The scale of each row with the least error, weights counted by their squares.

    With the best scale for its rounding, p / n of the sums below, a row loses what is missing of p^2 / n.
    """
    furthest = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)[..., 0]
    best, most = np.zeros_like(furthest), np.zeros_like(furthest)
    weight = x * x
    cubes = weight * x
    for step in range(-9, 10):
        inverse = divided(np.full_like(furthest, -(levels + 0.1 * step)), furthest)
        q = rounded(x * inverse[..., None], -levels, levels - 1)
        product = summed(cubes, q)
        scale = divided(product, summed(weight, q * q))
        explained = scale * product
        best, most = np.where(explained > most, scale, best), np.maximum(explained, most)
    return best.astype(np.float32)


def offset_scales(x: Floats, top: int) -> tuple[Floats, Floats]:
    """Scale and (positive) offset of each row with the least error, large weights counted more."""
    low, high = np.minimum(x.min(-1), 0), x.max(-1)
    weight = np.sqrt(np.square(x).mean(-1, keepdims=True)) + np.abs(x)
    weighted = weight * x
    total, mean = weight.sum(-1), weighted.sum(-1)
    best, offset, most = np.zeros_like(low), -low, np.full_like(low, -np.inf)
    for step in range(-10, 11):
        inverse = divided(np.full_like(low, top + 0.1 * step), high - low)
        q = rounded((x - low[..., None]) * inverse[..., None], 0, top)
        scaled = weight * q
        line = Line(total, scaled.sum(-1), mean, summed(scaled, q), summed(weighted, q))
        scale, bottom = line.fitted()
        explained = line.explained(scale, bottom)
        better = explained > most
        best, offset = np.where(better, scale, best), np.where(better, -bottom, offset)
        most = np.where(better, explained, most)
    return best.astype(np.float32), offset.astype(np.float32)


def rounded(x: Floats, least: int, most: int) -> Floats:
    """Whole numbers in place, not outside of the two."""
    np.rint(x, out=x)
    return np.clip(x, least, most, out=x)


def summed(a: Floats, b: Floats) -> Floats:
    """Sums of products along the rows."""
    return np.einsum("...k,...k->...", a, b)


@dataclass(frozen=True, slots=True)
class Line:
    """Weighted sums of 1, q, x, q q and q x along rows: all that x = scale q + bottom is fitted and judged by."""

    w: Floats
    wq: Floats
    wx: Floats
    wqq: Floats
    wqx: Floats

    def fitted(self) -> tuple[Floats, Floats]:
        """Weighted least squares, with a scale above and a bottom not above 0."""
        spread = self.w * self.wqq - self.wq * self.wq
        scale = divided(self.w * self.wqx - self.wq * self.wx, spread)
        bottom = divided(self.wqq * self.wx - self.wq * self.wqx, spread)
        one_level = spread <= 1e-5 * self.w * self.wqq  # all in one place: no line goes through it alone
        plain = (bottom > 0) | one_level
        scale = np.where(plain, divided(self.wqx, self.wqq), scale)
        return np.maximum(scale, 0).astype(np.float32), np.where(plain, np.float32(0), bottom).astype(np.float32)

    def explained(self, scale: Floats, bottom: Floats) -> Floats:
        """By how much the error is smaller than that of x = 0."""
        crossed = 2 * scale * bottom * self.wq + scale * scale * self.wqq + bottom * bottom * self.w
        return 2 * scale * self.wqx + 2 * bottom * self.wx - crossed
