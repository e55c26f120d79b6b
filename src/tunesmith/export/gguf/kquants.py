"""Blocks of 256 weights with scales of scales (Q4_K, Q5_K, Q6_K), each scale searched for the least squared error."""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

BLOCK = 256
CHUNK = 4096  # blocks at a time: bounds the memory of the search
Floats = NDArray[np.floating[Any]]
Bytes = NDArray[np.integer[Any]]
K_TYPES = (Type.Q4_K, Type.Q5_K, Type.Q6_K)


def quantize_k(weights: Floats, kind: Type) -> Bytes:
    """Rows whose length is a multiple of 256 as bytes of the type."""
    rows, width = weights.shape
    blocks = np.ascontiguousarray(weights, dtype=np.float32).reshape(-1, BLOCK)
    parts = [pack(blocks[at : at + CHUNK], kind) for at in range(0, len(blocks), CHUNK)]
    return np.concatenate(parts).reshape(rows, width // BLOCK * parts[0].shape[1])


def pack(blocks: Floats, kind: Type) -> Bytes:
    if kind == Type.Q6_K:
        return pack_six(blocks)
    return pack_offset(blocks, 4 if kind == Type.Q4_K else 5)


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
    quarters = (half >> 4).reshape(n, 2, 4, 32)
    high = quarters[:, :, 0] | (quarters[:, :, 1] << 2) | (quarters[:, :, 2] << 4) | (quarters[:, :, 3] << 6)
    signed = whole.astype(np.int8).view(np.uint8)
    return np.hstack([low.reshape(n, -1), high.reshape(n, -1), signed, d.astype(np.float16).view(np.uint8)])


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
    """The scale of each row of 16 with the least error, weights counted by their squares."""
    furthest = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)[..., 0]
    best, least = np.zeros_like(furthest), np.full_like(furthest, np.inf)
    for step in range(-9, 10):
        inverse = divided(np.full_like(furthest, -(levels + 0.1 * step)), furthest)
        q = np.clip(np.rint(x * inverse[..., None]), -levels, levels - 1)
        weight = x * x
        scale = divided((weight * x * q).sum(-1), (weight * q * q).sum(-1))
        error = (weight * np.square(x - scale[..., None] * q)).sum(-1)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best.astype(np.float32)


def offset_scales(x: Floats, top: int) -> tuple[Floats, Floats]:
    """Scale and (positive) offset of each row of 32 with the least error, large weights counted more."""
    low, high = np.minimum(x.min(-1), 0), x.max(-1)
    weight = np.sqrt(np.square(x).mean(-1, keepdims=True)) + np.abs(x)
    best, offset, least = np.zeros_like(low), -low, np.full_like(low, np.inf)
    for step in range(-10, 11):
        inverse = divided(np.full_like(low, top + 0.1 * step), high - low)
        q = np.clip(np.rint((x - low[..., None]) * inverse[..., None]), 0, top)
        scale, bottom = fitted(x, q, weight)
        error = (weight * np.square(scale[..., None] * q + bottom[..., None] - x)).sum(-1)
        better = error < least
        best, offset = np.where(better, scale, best), np.where(better, -bottom, offset)
        least = np.where(better, error, least)
    return best.astype(np.float32), offset.astype(np.float32)


def fitted(x: Floats, q: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """The line x = scale q + bottom of weighted least squares, with a scale above and a bottom not above 0."""
    w, wq, wx = weight.sum(-1), (weight * q).sum(-1), (weight * x).sum(-1)
    wqq, wqx = (weight * q * q).sum(-1), (weight * q * x).sum(-1)
    spread = w * wqq - wq * wq
    scale = divided(w * wqx - wq * wx, spread)
    bottom = divided(wqq * wx - wq * wqx, spread)
    through = divided(wqx, wqq)
    one_level = spread <= 1e-5 * w * wqq  # all in one place: no line goes through it alone
    plain = (bottom > 0) | one_level
    scale, bottom = np.where(plain, through, scale), np.where(plain, np.float32(0), bottom)
    return np.maximum(scale, 0).astype(np.float32), bottom.astype(np.float32)
