"""Forest attention on a GPU: FlashAttention along each segment's path, FlexAttention where that cannot serve.

The rows of a segment see the keys of its ancestors, then those of its own up to themselves: causal attention whose
last row sees the last key. So each segment is a sequence of one varlen call, with the keys of its path copied together
when it has ancestors. In fp32, in wide heads and where too much would be copied, FlexAttention reads the keys in place.
"""

from __future__ import annotations

import inspect
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from tunesmith.models.forest import Forest, Segment, Span

HALVES = (torch.bfloat16, torch.float16)
WIDEST = 256  # head size that FlashAttention takes at most, in steps of 8
COPIES = 4  # keys that are copied together per token of the batch at most: they are held until the backward pass
BLOCK = 128  # tokens per block of FlexAttention's mask
KEPT = 4  # forests whose index tensors are kept: a step reads few at a time


def cuda_attention(
    query: Float[Tensor, "H T E"],
    key: Float[Tensor, "Hkv T E"],
    value: Float[Tensor, "Hkv T E"],
    forest: Forest,
    scale: float,
    window: int | None,
) -> Float[Tensor, "T H E"]:
    """softmax(q k^T * scale + mask) v; keys that share a query group are never repeated."""
    shape = shape_of(forest, query.device)
    width = query.shape[-1]
    if query.dtype in HALVES and width <= WIDEST and width % 8 == 0 and shape.paths.copies <= COPIES:
        return varlen(query, key, value, shape.paths, scale, window)
    return flex(query, key, value, shape.mask(window), scale)


@dataclass(frozen=True, slots=True)
class Paths:
    """N segments as the sequences of a varlen call: R rows end to end, and the L keys of their paths end to end."""

    row_bounds: Int[Tensor, " N+1"]
    key_bounds: Int[Tensor, " N+1"]
    most_rows: int
    most_keys: int
    keys: Int[Tensor, " L"] | None  # the token of each key; None: the keys as they stand
    copies: float  # L / R


class Shape:
    """What the kernels read of one forest, on one device: made when first asked for, then used by every layer."""

    def __init__(self, forest: Forest, device: torch.device) -> None:
        self.forest, self.device = forest, device
        self.segments = tuple(segment for segment in forest.segments if segment.end > segment.start)
        self.masks: dict[int | None, BlockMask] = {}

    @property
    def total(self) -> int:
        return self.segments[-1].end

    @cached_property
    def paths(self) -> Paths:
        rows = [segment.end - segment.start for segment in self.segments]
        keys = [segment.context + count for segment, count in zip(self.segments, rows, strict=True)]
        order = None
        if any(segment.ancestors for segment in self.segments):
            spans = [span for segment in self.segments for span in path_of(segment)]
            order = torch.from_numpy(np.concatenate([np.arange(*span) for span in spans])).to(self.device)
        return Paths(
            self.bounds(rows), self.bounds(keys), max(rows), max(keys), order, copies=sum(keys) / max(1, sum(rows))
        )

    def bounds(self, lengths: list[int]) -> Int[Tensor, " N+1"]:
        ends = np.cumsum([0, *lengths], dtype=np.int32)
        return torch.from_numpy(ends).to(self.device)

    @cached_property
    def places(self) -> Int[Tensor, "3 T"]:
        return torch.from_numpy(places(self.segments)).to(self.device)

    def mask(self, window: int | None) -> BlockMask:
        if window not in self.masks:
            some, full = (torch.from_numpy(table).to(self.device) for table in block_tables(self.segments, window))
            counts, order = in_order(some & ~full)
            full_counts, full_order = in_order(full)
            self.masks[window] = BlockMask.from_kv_blocks(
                counts,
                order,
                full_counts,
                full_order,
                BLOCK_SIZE=BLOCK,
                mask_mod=visible(self.places, window),
                seq_lengths=(self.total, self.total),
            )
        return self.masks[window]


RECENT: deque[Shape] = deque(maxlen=KEPT)


def shape_of(forest: Forest, device: torch.device) -> Shape:
    """The forest's own, made at most once while it is in use; compared by identity, which costs nothing."""
    for shape in RECENT:
        if shape.forest is forest and shape.device == device:
            return shape
    RECENT.append(Shape(forest, device))
    return RECENT[-1]


def path_of(segment: Segment) -> tuple[Span, ...]:
    return (*segment.ancestors, (segment.start, segment.end))


class Gather(torch.autograd.Function):
    """Rows by index; the gradients of a row that several read are summed in fp32."""

    @staticmethod
    def forward(ctx, states, index):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(index)
        ctx.count = len(states)
        return states.index_select(0, index)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        (index,) = ctx.saved_tensors
        total = torch.zeros(ctx.count, *grad.shape[1:], dtype=torch.float32, device=grad.device)
        return total.index_add_(0, index, grad.float()).to(grad.dtype), None


@cache
def varlen_takes(parameter: str) -> bool:
    """Whether this torch's varlen_attn has the parameter; 2.11 shares key heads without being told to."""
    from torch.nn.attention.varlen import varlen_attn

    return parameter in inspect.signature(varlen_attn).parameters


def varlen(
    query: Float[Tensor, "H T E"],
    key: Float[Tensor, "Hkv T E"],
    value: Float[Tensor, "Hkv T E"],
    paths: Paths,
    scale: float,
    window: int | None,
) -> Float[Tensor, "T H E"]:
    """FlashAttention over the paths; causal masks and windows count from the last key of each."""
    from torch.nn.attention.varlen import varlen_attn

    rows, keys, values = (states.transpose(0, 1) for states in (query, key, value))
    if paths.keys is not None:
        keys, values = Gather.apply(keys, paths.keys), Gather.apply(values, paths.keys)
    bounds = (paths.row_bounds, paths.key_bounds, paths.most_rows, paths.most_keys)
    near = (-1 if window is None else window - 1, 0)
    rows, keys, values = (states if states.stride(-1) == 1 else states.contiguous() for states in (rows, keys, values))
    if varlen_takes("enable_gqa"):
        shared = len(key) < len(query)
        out = varlen_attn(rows, keys, values, *bounds, scale=scale, window_size=near, enable_gqa=shared)
    else:
        out = varlen_attn(rows, keys, values, *bounds, scale=scale, window_size=near)
    assert isinstance(out, Tensor)
    return out


def places(segments: tuple[Segment, ...]) -> Int[np.ndarray, "3 T"]:
    """Of each token: where a walk over the trees, parents first, enters its segment, where it leaves the segment's
    last descendant, and the token's depth along its path.

    A segment continues another one, or is that one, when it is entered within the other's interval.
    """
    paths = [path_of(segment) for segment in segments]
    entered = {path: number for number, path in enumerate(sorted(paths))}  # a path comes before its continuations
    below = Counter(path[:length] for path in paths for length in range(1, len(path) + 1))
    found = np.zeros((3, segments[-1].end), dtype=np.int32)
    for segment, path in zip(segments, paths, strict=True):
        tokens = slice(segment.start, segment.end)
        found[0, tokens] = entered[path]
        found[1, tokens] = entered[path] + below[path]
        found[2, tokens] = np.arange(segment.end - segment.start) + segment.context
    return found


def visible(places: Int[Tensor, "3 T"], window: int | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention's mask_mod: a row sees the keys of its path up to its own depth, at most `window` of them.

    It reads tensors of its own, and no number that changes: then one kernel serves all batches and windows.
    """
    enter, leave, depth = (row.clone() for row in places)
    oldest = torch.zeros_like(depth) if window is None else depth - window + 1

    def is_visible(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        on_path = (enter[key] <= enter[row]) & (enter[row] < leave[key])
        return on_path & (oldest[row] <= depth[key]) & (depth[key] <= depth[row])

    return is_visible


@dataclass(frozen=True, slots=True)
class Part:
    """The blocks that hold tokens [start, end), whose first token has the given depth."""

    start: int
    end: int
    depth: int

    @property
    def blocks(self) -> slice:
        return slice(self.start // BLOCK, -(-self.end // BLOCK))

    def depths(self) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest depth within each block."""
        first = np.arange(self.blocks.start, self.blocks.stop) * BLOCK
        low = np.maximum(first, self.start) - self.start + self.depth
        return low, np.minimum(first + BLOCK, self.end) - 1 - self.start + self.depth

    def filled(self) -> np.ndarray:
        """Whether every token of the block belongs to the part."""
        first = np.arange(self.blocks.start, self.blocks.stop) * BLOCK
        return (first >= self.start) & (first + BLOCK <= self.end)


def block_tables(
    segments: tuple[Segment, ...], window: int | None
) -> tuple[Bool[np.ndarray, "B B"], Bool[np.ndarray, "B B"]]:
    """Blocks of rows by blocks of keys: where some row sees some key, and where every row sees every key."""
    count = -(-segments[-1].end // BLOCK)
    some, full = np.zeros((count, count), dtype=bool), np.zeros((count, count), dtype=bool)
    for segment in segments:
        rows = Part(segment.start, segment.end, segment.context)
        depth = 0
        for start, end in path_of(segment):
            if end > start:
                keys = Part(start, end, depth)
                table = pair_tables(rows, keys, window)
                some[rows.blocks, keys.blocks] |= table[0]
                full[rows.blocks, keys.blocks] |= table[1]
            depth += end - start
    return some, full


def pair_tables(rows: Part, keys: Part, window: int | None) -> tuple[np.ndarray, np.ndarray]:
    (low_row, high_row), (low_key, high_key) = rows.depths(), keys.depths()
    reach = rows.depth + rows.end - rows.start if window is None else window - 1
    some = (low_key[None] <= high_row[:, None]) & (high_key[None] >= low_row[:, None] - reach)
    full = (high_key[None] <= low_row[:, None]) & (low_key[None] >= high_row[:, None] - reach)
    return some, full & rows.filled()[:, None] & keys.filled()[None]


def in_order(table: Bool[Tensor, "B B"]) -> tuple[Int[Tensor, "1 1 B"], Int[Tensor, "1 1 B B"]]:
    """How many blocks of keys each block of rows has, and their numbers first."""
    order = table.long().argsort(dim=-1, descending=True, stable=True)
    return table.sum(-1).int()[None, None], order.int()[None, None]


@cache
def compiled() -> Callable[..., Tensor]:
    """FlexAttention as one kernel for all sizes of batch: uncompiled, it forms every score."""
    return torch.compile(flex_attention, dynamic=True)


def flex(
    query: Float[Tensor, "H T E"],
    key: Float[Tensor, "Hkv T E"],
    value: Float[Tensor, "Hkv T E"],
    mask: BlockMask,
    scale: float,
) -> Float[Tensor, "T H E"]:
    """FlexAttention under the forest's block mask."""
    shared = len(key) < len(query)
    out = compiled()(query[None], key[None], value[None], block_mask=mask, scale=scale, enable_gqa=shared)
    return out[0].transpose(0, 1)
