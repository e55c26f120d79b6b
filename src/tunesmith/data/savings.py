"""How much shared beginnings save, estimated from steps drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tunesmith.data.balance import Sizes, share_out
from tunesmith.data.branches import Branch, grow, opening
from tunesmith.data.prepared import Prepared
from tunesmith.types import Example

STEPS = 8  # drawn
STEP, MICROBATCH = 16, 8192  # examples and tokens of a usual step


@dataclass(frozen=True, slots=True)
class Beginning:
    """The tokens of an example that others may share, and how many it has."""

    tokens: np.ndarray
    length: int


def beginning(example: Example) -> Beginning:
    """A copy that keeps nothing else of the example in memory."""
    return Beginning(opening(example).copy(), len(example))


class Beginnings(Protocol):
    """Beginnings by their places."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> Beginning: ...


@dataclass(frozen=True, slots=True)
class PreparedBeginnings:
    """Those of all prepared examples, read when they are asked for."""

    prepared: Prepared

    def __len__(self) -> int:
        return len(self.prepared)

    def __getitem__(self, place: int, /) -> Beginning:
        return beginning(self.prepared[place])


class Spread:
    """Beginnings of examples spread evenly over a stream: every n-th, and half as many when there are too many."""

    def __init__(self, most: int = 1000) -> None:
        self.most = most
        self.seen = 0
        self.stride = 1
        self.kept: list[Beginning] = []

    def add(self, example: Example) -> None:
        if self.seen % self.stride == 0:
            self.kept.append(beginning(example))
        self.seen += 1
        if len(self.kept) > self.most:
            self.kept, self.stride = self.kept[::2], 2 * self.stride

    def figures(self) -> dict[str, float]:
        """The share that steps of usual size save, by its name in a table; nothing where it is 0."""
        share = saved_share(self.kept, STEP, MICROBATCH)
        return {f"saved by shared beginnings, {STEP} a step": share} if share else {}


def saved_share(beginnings: Beginnings, size: int, capacity: int, ranks: int = 1) -> float:
    """Share of the tokens of `size` examples a step that microbatches of at most `capacity` tokens compute once.

    Steps are drawn by chance, as shuffling forms them; the estimate is the same every time.
    """
    chance = np.random.default_rng(0)
    saved = total = 0
    for _ in range(STEPS if len(beginnings) > 1 else 0):
        places = chance.choice(len(beginnings), min(size, len(beginnings)), replace=False)
        drawn = [beginnings[int(place)] for place in places]
        lengths = [one.length for one in drawn]
        hands = share_out(forest_of(drawn), Sizes(lengths, [length**2 for length in lengths]), capacity, ranks)
        groups = [[drawn[place] for place in group] for hand in hands for group in hand]
        saved += sum(branch.saved for group in groups for branch in forest_of(group))
        total += sum(lengths)
    return saved / total if total else 0.0


def forest_of(drawn: Sequence[Beginning]) -> list[Branch]:
    return grow([one.tokens for one in drawn])
