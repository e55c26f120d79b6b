"""Records that begin with the same tokens: the tree of what they share, so that it is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tunesmith.types import Example

SHORTEST = 16  # tokens that a shared segment must have: a shorter one saves less than one more segment costs
LEVELS = 32  # of segments below each other, at most


@dataclass(frozen=True, slots=True)
class Branch:
    """Tokens [above, end) that all `members` begin with, after the `above` tokens that their parent branch holds.

    A leaf has one member, no children and no tokens of its own: the rest of that example begins at `above`.
    """

    above: int
    end: int
    members: tuple[int, ...]  # ascending places in the list of examples
    children: tuple[Branch, ...] = ()

    @property
    def own(self) -> int:
        return self.end - self.above

    @property
    def saved(self) -> int:
        """Tokens that the members would compute beside those of the branch if nothing were shared."""
        return self.own * (len(self.members) - 1) + sum(child.saved for child in self.children)

    def walk(self) -> Iterator[Branch]:
        """The branch, then everything below it, in order."""
        yield self
        for child in self.children:
            yield from child.walk()


def forest_of(examples: Sequence[Example], *, share: bool = True, shortest: int = SHORTEST) -> list[Branch]:
    """What the examples share, in pieces of at least `shortest` tokens and the order of first members; without `share`
    nothing."""
    return grow([opening(one) for one in examples], shortest) if share else apart(len(examples))


def apart(count: int) -> list[Branch]:
    """Examples that share nothing."""
    return [Branch(0, 0, (place,)) for place in range(count)]


def opening(example: Example) -> np.ndarray:
    """The tokens that others may share: before the first trained one, and of judged answers no more than the prompt.

    A plain sequence keeps a token of its own.
    """
    trained = np.flatnonzero(example.weights)
    end = int(trained[0]) if len(trained) else len(example)
    return example.tokens[: min(end, example.cuts[0] if example.cuts else len(example) - 1)]


def grow(openings: Sequence[np.ndarray], shortest: int = SHORTEST) -> list[Branch]:
    """The forest of what the examples with these openings share, in the order of first members."""
    order = sorted(range(len(openings)), key=lambda place: (openings[place].tobytes(), place))
    common = [alike(openings[one], openings[other]) for one, other in pairwise(order)]
    return split(order, common, 0, LEVELS, shortest)


def split(order: Sequence[int], common: Sequence[int], above: int, levels: int, shortest: int) -> list[Branch]:
    """Branches below `above` tokens; `common[i]` is what the sorted members i and i + 1 have in common."""
    found, start = [], 0
    for end in range(1, len(order) + 1):
        if end < len(order) and levels and common[end - 1] >= above + shortest:
            continue
        run, inner = order[start:end], common[start : end - 1]
        if len(run) == 1:
            found.append(Branch(above, above, (run[0],)))
        else:
            depth = min(inner)
            children = split(run, inner, depth, levels - 1, shortest)
            found.append(Branch(above, depth, tuple(sorted(run)), tuple(children)))
        start = end
    return sorted(found, key=lambda branch: branch.members)


def alike(one: np.ndarray, other: np.ndarray) -> int:
    """How many first tokens are equal."""
    shorter = min(len(one), len(other))
    different = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(different[0]) if len(different) else shorter
