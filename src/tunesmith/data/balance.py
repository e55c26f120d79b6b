"""A step in microbatches of even cost: what shares tokens stays together, and every rank has as much to do."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tunesmith.data.branches import Branch
from tunesmith.data.packing import pack
from tunesmith.types import Example

EVEN = 8192  # length at which attention is taken to cost as much as all else; by arithmetic it is 12 model widths


@dataclass(frozen=True, slots=True)
class Piece:
    """Examples that are computed together, the tokens that takes, and the squares of lengths that attention takes."""

    members: tuple[int, ...]
    tokens: int
    squares: int

    @property
    def cost(self) -> float:
        return self.tokens + self.squares / EVEN


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of each example, without sharing: its tokens, and the squares that its attention takes (see `squares_of`)."""

    tokens: Sequence[int]
    squares: Sequence[int]


def sizes_of(examples: Sequence[Example], lengths: Sequence[int] | None = None) -> Sizes:
    """The sizes of examples; `lengths`, where given, are the tokens to leave for each."""
    tokens = [len(one) for one in examples] if lengths is None else lengths
    return Sizes(tokens, [squares_of(size, one) for size, one in zip(tokens, examples, strict=True)])


def squares_of(length: int, example: Example) -> int:
    """Twice the pairs of tokens that attend to each other: the answers see their prompt and themselves."""
    if len(example.cuts) < 2 or example.chained:
        return length**2
    prompt = example.cuts[0]
    paths = (prompt + end - start for start, end in pairwise((*example.cuts, length)))
    return prompt**2 + sum(path**2 - prompt**2 for path in paths)


def share_out(forest: Sequence[Branch], sizes: Sizes, capacity: int, ranks: int = 1) -> list[list[list[int]]]:
    """The microbatches of each rank, as ascending places of examples; the result depends on the input alone.

    No microbatch computes more than `capacity` tokens, but for one that a single longer example fills.
    """
    total = sum(whole(branch, sizes).tokens for branch in forest)
    pieces = cut(forest, sizes, min(capacity, -(-total // ranks)))
    groups = sorted((joined(part) for part in even(pieces, capacity, ranks)), key=lambda group: group.members)
    return [[list(groups[number].members) for number in hand] for hand in deal([each.cost for each in groups], ranks)]


def cut(forest: Sequence[Branch], sizes: Sizes, capacity: int) -> list[Piece]:
    """Whole branches where they fit, else their members in parts of even cost that each hold what they share."""
    found: list[Piece] = []
    for branch in forest:
        piece = whole(branch, sizes)
        if piece.tokens <= capacity or not branch.children:
            found.append(piece)
            continue
        room = capacity - branch.own
        squares = branch.end**2 - branch.above**2
        for part in even(cut(branch.children, sizes, room), room):
            found.append(joined(part, branch.own, squares))
    return found


def whole(branch: Branch, sizes: Sizes) -> Piece:
    """All members of a branch, without what lies above it."""
    if not branch.children:
        place = branch.members[0]
        return Piece(branch.members, sizes.tokens[place] - branch.above, sizes.squares[place] - branch.above**2)
    inner = [whole(child, sizes) for child in branch.children]
    return joined(inner, branch.own, branch.end**2 - branch.above**2)


def joined(parts: Sequence[Piece], tokens: int = 0, squares: int = 0) -> Piece:
    """Pieces as one, below `tokens` that they share."""
    members = tuple(sorted(place for part in parts for place in part.members))
    return Piece(members, tokens + sum(part.tokens for part in parts), squares + sum(part.squares for part in parts))


def even(pieces: Sequence[Piece], capacity: int, ranks: int = 1) -> list[list[Piece]]:
    """As few bins as best fit needs, up to a multiple of the ranks, filled evenly where that keeps the capacity."""
    fewest = pack([piece.tokens for piece in pieces], capacity)
    count = -(-len(fewest) // ranks) * ranks
    for wanted in (count, count + ranks) if len(pieces) > 1 and count > 1 else ():
        bins = levelled(pieces, min(wanted, len(pieces)), capacity)
        if bins is not None:
            return bins
    return [[pieces[index] for index in one] for one in fewest]


def levelled(pieces: Sequence[Piece], count: int, capacity: int) -> list[list[Piece]] | None:
    """Dearest first into the bin that costs least so far and has room; None when one finds no room."""
    bins: list[list[Piece]] = [[] for _ in range(count)]
    held = [0] * count  # tokens
    cheapest = [(0.0, number) for number in range(count)]
    for index in sorted(range(len(pieces)), key=lambda i: (-pieces[i].cost, i)):
        piece = pieces[index]
        passed = []
        while cheapest:
            cost, number = heapq.heappop(cheapest)
            if not bins[number] or held[number] + piece.tokens <= capacity:
                break
            passed.append((cost, number))
        else:
            return None
        bins[number].append(piece)
        held[number] += piece.tokens
        for entry in (*passed, (cost + piece.cost, number)):
            heapq.heappush(cheapest, entry)
    return [one for one in bins if one]


def deal(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Indices for each rank: dearest first to the rank that has least to do, then back in ascending order."""
    hands: list[list[int]] = [[] for _ in range(ranks)]
    held = [0.0] * ranks
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = held.index(min(held))
        hands[rank].append(index)
        held[rank] += costs[index]
    return [sorted(hand) for hand in hands]
