"""A rank that is slower than the others holds all of them up: found in the seconds that each works by itself."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence

from tunesmith.errors import Diagnostic

WINDOW = 8  # steps that are looked at together
TIMES = 3.0  # as slow as the median of the other ranks
SECONDS = 0.02  # and by at least so much: less is noise


class Stragglers:
    """Warns of a rank once; of another one, or of the same one after it had caught up, again."""

    def __init__(self) -> None:
        self._last: deque[Sequence[float]] = deque(maxlen=WINDOW)
        self._warned: int | None = None

    def note(self, seconds: Sequence[float]) -> Diagnostic | None:
        """`seconds` that every rank worked by itself in a step, waiting left out; W466 names one that is too slow."""
        self._last.append(seconds)
        if len(seconds) < 2 or len(self._last) < WINDOW:
            return None
        typical = [statistics.median(column) for column in zip(*self._last, strict=True)]
        slowest = max(range(len(typical)), key=typical.__getitem__)
        others = statistics.median(typical[:slowest] + typical[slowest + 1 :])
        own = typical[slowest]
        if own < TIMES * others or own - others < SECONDS:
            self._warned = None
            return None
        if self._warned == slowest:
            return None
        self._warned = slowest
        factor = "many" if others == 0 else f"{own / others:.1f}"
        message = f"rank {slowest} is {factor} times slower than the others: they wait {1 - others / own:.0%} of a step"
        evidence = [f"rank {rank}: {value:.3f} s of own work in a step" for rank, value in enumerate(typical)]
        return Diagnostic("W466", message, "warning", evidence=tuple(evidence))
