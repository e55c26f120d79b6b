"""The shape of a batch as attention sees it: segments, their ancestors, and the masks between them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

BLOCK = 96  # rows multiplied at once with the keys above them: bounds the probabilities held in memory
STACKED = 2**18  # pairs of row and key that the units of one stack may hold together; one long unit may hold more
SPARED = 2**14  # pairs that may be computed in vain where that saves a matmul

Span = tuple[int, int]
Size = tuple[int, int]  # rows, and keys above them


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens [start, end) and the spans of its ancestors, oldest first."""

    start: int
    end: int
    ancestors: tuple[Span, ...]

    @property
    def context(self) -> int:
        """Tokens before the segment's first one, along its path."""
        return length(self.ancestors)


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows [start, stop) that are multiplied at once, and the spans before them that every row continues.

    The rows are a block of one segment, or several short segments of one tree.
    """

    start: int
    stop: int
    above: tuple[Span, ...]
    segments: tuple[Segment, ...]

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def size(self) -> Size:
        """Rows and keys above them, rounded up so that many units have the same: kernels are made per size."""
        return rounded(self.rows), rounded(length(self.above)) if self.above else 0


@dataclass(frozen=True, slots=True)
class Stack:
    """Units filled up to one size, multiplied by one batched matmul; N units, R rows, A keys above, L = A + R keys.

    What fills a unit up repeats one of its own tokens: such keys are hidden from the others, and such rows are put in a
    place behind the last token, where nobody looks.
    """

    units: tuple[Unit, ...]
    rows: Int[Tensor, " NR"]  # token of each row
    keys: Int[Tensor, " NL"]  # token of each key
    row_places: Int[Tensor, " NR"]  # where each row's figures belong
    key_places: Int[Tensor, " NL"]
    filling: Int[Tensor, " F"]  # rows that fill up
    bias: Float[Tensor, "N R C"]  # additive mask of the last C keys; every row sees the keys before them

    @property
    def count(self) -> int:
        return len(self.units)


@dataclass(frozen=True, slots=True)
class Paths:
    """The same segments as tables, tree by tree, the largest first; every range is its start and its end."""

    trees: Int[Tensor, "R 2"]  # segments
    segments: Int[Tensor, "N 4"]  # tokens, and spans: those of the ancestors
    spans: Int[Tensor, "M 2"]  # tokens


@dataclass(frozen=True, slots=True)
class Learned:
    """Keys and values of every layer that no token gave; `forest` has a root of N tokens in their place."""

    keys: Float[Tensor, "L K N E"]
    values: Float[Tensor, "L K N E"]
    forest: Forest

    def before(self, layer: int, key: Float[Tensor, "K T E"], value: Float[Tensor, "K T E"]) -> tuple[Tensor, Tensor]:
        """The layer's keys and values with the learned ones in front."""
        keys, values = self.keys[layer].to(key.dtype), self.values[layer].to(value.dtype)
        return torch.cat([keys, key], 1), torch.cat([values, value], 1)


@dataclass(slots=True)
class Forest:
    """Segments of one batch; a token attends to its ancestors' segments and to itself and earlier in its own.

    `wanted` are the tokens whose last states somebody reads, in ascending order; None: all. `learned` is seen by every
    token.
    """

    segments: tuple[Segment, ...]
    wanted: Int[Tensor, " R"] | None = None
    learned: Learned | None = None
    biases: dict[tuple[int, int, int | None, torch.dtype], Tensor] = field(default_factory=dict)
    stacked: dict[tuple[int | None, torch.dtype], list[Stack]] = field(default_factory=dict)
    tables: Paths | None = None

    @classmethod
    def of(cls, segments_N3: Int[Tensor, "N 3"], wanted: Int[Tensor, " R"] | None = None) -> Forest:
        built: list[Segment] = []
        for start, end, parent in segments_N3.tolist():
            if parent < 0:
                ancestors: tuple[Span, ...] = ()
            else:
                above = built[parent]
                ancestors = (*above.ancestors, (above.start, above.end))
            built.append(Segment(start, end, ancestors))
        return cls(tuple(built), wanted)

    @property
    def is_flat(self) -> bool:
        """True when every segment is a root: plain packed sequences."""
        return all(not segment.ancestors for segment in self.segments)

    def bias(self, rows: int, context: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask (rows, context + rows): row i sees keys up to context + i, at most `window` of them."""
        key = (rows, context, window, dtype)
        if key not in self.biases:
            query = torch.arange(context, context + rows)[:, None]
            keys = torch.arange(context + rows)[None, :]
            hidden = keys > query
            if window is not None:
                hidden |= keys <= query - window
            self.biases[key] = torch.zeros(rows, context + rows, dtype=dtype).masked_fill_(hidden, float("-inf"))
        return self.biases[key]

    def stacks(self, window: int | None, dtype: torch.dtype) -> list[Stack]:
        """The whole batch as stacks of units, made once and used by every layer."""
        key = (window, dtype)
        if key not in self.stacked:
            made = stacks_of(units(self.segments, window))
            self.stacked[key] = [stack_of(size, members, self.length, window, dtype) for size, members in made]
        return self.stacked[key]

    def paths(self) -> Paths:
        """The tables of the whole batch, made once and used by every layer."""
        if self.tables is None:
            self.tables = paths_of(self.segments)
        return self.tables

    @property
    def length(self) -> int:
        """Tokens of the batch."""
        return self.segments[-1].end


def length(spans: tuple[Span, ...]) -> int:
    return sum(end - start for start, end in spans)


def paths_of(segments: tuple[Segment, ...]) -> Paths:
    grown: dict[int, list[Segment]] = {}
    for segment in segments:
        root = segment.ancestors[0][0] if segment.ancestors else segment.start
        grown.setdefault(root, []).append(segment)
    trees, rows, spans = [], [], []
    for tree in sorted(grown.values(), key=lambda tree: -sum(each.end - each.start for each in tree)):
        trees.append((len(rows), len(rows) + len(tree)))
        for segment in tree:
            rows.append((segment.start, segment.end, len(spans), len(spans) + len(segment.ancestors)))
            spans += segment.ancestors
    return Paths(*(torch.tensor(table, dtype=torch.int64) for table in (trees, rows, spans)))


def rounded(count: int) -> int:
    """Up to the next power of two from 8 to 32, then to the next multiple of 32."""
    return max(8, 1 << (count - 1).bit_length()) if count <= 32 else -(-count // 32) * 32


def units(segments: tuple[Segment, ...], window: int | None) -> list[Unit]:
    """Every segment in blocks of rows; short segments that continue the same tokens share a unit."""
    built: list[Unit] = []
    for segment in segments:
        for start in range(segment.start, segment.end, BLOCK):
            stop = min(start + BLOCK, segment.end)
            if start == segment.start and built and joins(segment, built[-1]):
                last = built.pop()
                built.append(Unit(last.start, stop, last.above, (*last.segments, segment)))
            else:
                own = ((segment.start, start),) if start > segment.start else ()
                built.append(Unit(start, stop, (*segment.ancestors, *own), (segment,)))
    if window is None:
        return built
    return [Unit(unit.start, unit.stop, newest(unit.above, window - 1), unit.segments) for unit in built]


def joins(segment: Segment, unit: Unit) -> bool:
    """Whether a segment may share the unit before it: same tree, same keys above, still a block."""
    if not segment.ancestors or unit.stop != segment.start or segment.end - unit.start > BLOCK:
        return False
    return unit.above == tuple((start, min(end, unit.start)) for start, end in segment.ancestors if start < unit.start)


def newest(spans: tuple[Span, ...], count: int) -> tuple[Span, ...]:
    """The last `count` tokens of the spans."""
    kept: list[Span] = []
    for start, end in reversed(spans):
        if count > 0:
            kept.append((max(start, end - count), end))
        count -= end - start
    return tuple(reversed(kept))


def stacks_of(members: list[Unit]) -> list[tuple[Size, tuple[Unit, ...]]]:
    """Units in stacks of 1, 2, 4, 8 ... of one size: few matmuls, of few different shapes, in bounded memory.

    The largest comes first: what it frees has room for the next, where growing ones would each ask for more.
    """
    sizes: dict[Size, list[Unit]] = {}
    for unit in members:
        sizes.setdefault(unit.size, []).append(unit)
    made = [part for size, same in joined(sizes).items() for part in split(size, same)]
    return sorted(made, key=lambda one: len(one[1]) * pairs(one[0]), reverse=True)


def pairs(size: Size) -> int:
    rows, above = size
    return rows * (rows + above)


def joined(sizes: dict[Size, list[Unit]]) -> dict[Size, list[Unit]]:
    """Fewer sizes: two become one that holds both while that costs less than the matmul it saves."""
    sizes = dict(sizes)
    while True:
        costs = {}
        for one, other in itertools.combinations(sizes, 2):
            both = max(one[0], other[0]), max(one[1], other[1])
            filled = sum(len(sizes[size]) * (pairs(both) - pairs(size)) for size in (one, other))
            costs[filled, one, other] = both
        if not costs or min(costs)[0] > SPARED:
            return sizes
        _, one, other = cheapest = min(costs)
        together = sizes.pop(one) + sizes.pop(other)
        sizes[costs[cheapest]] = sizes.get(costs[cheapest], []) + together


def split(size: Size, same: list[Unit]) -> Iterator[tuple[Size, tuple[Unit, ...]]]:
    """Parts of 1, 2, 4, 8 ... units; a part that is nearly twice the next power is filled up with empty units."""
    most = max(1, STACKED // pairs(size))
    while same:
        count = min(1 << (most.bit_length() - 1), 1 << (len(same) - 1).bit_length())
        missing = count - len(same)
        if missing > 0 and missing * pairs(size) > SPARED:
            count, missing = count // 2, 0
        here, same = same[:count], same[count:]
        yield size, (*here, *[Unit(here[0].start, here[0].start, (), ())] * max(0, missing))


def stack_of(size: Size, members: tuple[Unit, ...], total: int, window: int | None, dtype: torch.dtype) -> Stack:
    """The units at one size; `total` is the number of tokens, and so the place of what fills up."""
    rows, above = size
    tokens, row_places, keys, key_places, masks = [], [], [], [], []
    for unit in members:
        own = filled(torch.arange(unit.start, unit.stop), rows, unit.start)
        before = torch.cat([torch.arange(0), *(torch.arange(*span) for span in unit.above)])
        own_place = filled(torch.arange(unit.start, unit.stop), rows, total)
        tokens.append(own)
        row_places.append(own_place)
        keys += [filled(before, above, unit.start), own]
        key_places += [filled(before, above, total), own_place]
        masks.append(visible(unit, size, window))
    allowed = torch.stack(masks)
    shown = 0 if window is not None else int(allowed[..., :above].all(0).all(0).long().cumprod(0).sum())
    bias = torch.zeros(allowed[..., shown:].shape, dtype=dtype).masked_fill_(~allowed[..., shown:], float("-inf"))
    places = torch.cat(row_places)
    filling = (places == total).nonzero()[:, 0]
    return Stack(members, torch.cat(tokens), torch.cat(keys), places, torch.cat(key_places), filling, bias)


def filled(numbers: Tensor, count: int, value: int) -> Tensor:
    return nn.functional.pad(numbers, (0, count - len(numbers)), value=value)


def visible(unit: Unit, size: Size, window: int | None) -> Bool[Tensor, "R L"]:
    """True where a row of the unit may see a key; rows that fill up see their own earlier ones, to stay finite."""
    rows, above = size
    count = length(unit.above)
    allowed = torch.zeros(rows, above + rows, dtype=torch.bool)
    allowed[:, :count] = True
    own = allowed[:, above:]
    own[unit.rows :] = torch.ones(rows, rows, dtype=torch.bool).tril_()[unit.rows :]
    depths = torch.zeros(unit.rows, dtype=torch.int64)
    for segment in unit.segments:
        start, stop = max(segment.start, unit.start), min(segment.end, unit.stop)
        here = slice(start - unit.start, stop - unit.start)
        own[here, here] = torch.ones(stop - start, stop - start, dtype=torch.bool).tril_()
        for first, last in segment.ancestors:
            if last > unit.start:
                own[here, max(first, unit.start) - unit.start : last - unit.start] = True
        depths[here] = torch.arange(start, stop) - segment.start + segment.context
    if window is not None and unit.rows:
        top = int(depths[0])
        key_depths = torch.cat([torch.arange(top - count, top), torch.zeros(above - count, dtype=torch.int64), depths])
        near = key_depths[None, :] > depths[:, None] - window
        allowed[: unit.rows, : above + unit.rows] &= near
    return allowed


def dense_mask(forest: Forest, window: int | None = None) -> Bool[Tensor, "T T"]:
    """True where query row may see key column, over the whole batch; the reference, quadratic in T."""
    total = max(segment.end for segment in forest.segments)
    allowed = torch.zeros(total, total, dtype=torch.bool)
    for segment in forest.segments:
        rows = segment.end - segment.start
        spans = (*segment.ancestors, (segment.start, segment.end))
        columns = torch.cat([torch.arange(start, end) for start, end in spans])
        visible = forest.bias(rows, segment.context, window, torch.float32) == 0
        allowed[segment.start : segment.end, columns] = visible
    return allowed
