"""How far a model came from another one at a task, exercise by exercise, as draws that can be added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from tunesmith.evaluate.metrics import RESAMPLES, SEED, Score, mean, proportion, ratio
from tunesmith.evaluate.paired import Verdict, binomial_p, verdict_of
from tunesmith.evaluate.suite import Measure

Side = Literal["new", "general"]


@dataclass(frozen=True, slots=True)
class Sheet:
    """What one model made of one task: a value and a weight for each exercise or record, under its name."""

    task: str
    side: Side
    measure: Measure
    names: tuple[str, ...]
    values: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def score(self) -> Score:
        """A share, or a mean over weights, with its 95 % interval."""
        if self.measure.binary:
            return proportion(self.values)
        if set(self.weights) == {1.0}:
            return mean(self.values)
        return ratio([value * weight for value, weight in zip(self.values, self.weights, strict=True)], self.weights)


@dataclass(frozen=True, slots=True)
class Draws:
    """A change and what a bootstrap over exercises makes of it; the same exercises are drawn for every model."""

    value: float
    drawn: Float[np.ndarray, " R"]

    @staticmethod
    def mean_of(parts: Sequence[Draws]) -> Draws:
        """Every task counts the same."""
        value = sum(part.value for part in parts) / len(parts)
        return Draws(value, np.mean(np.stack([part.drawn for part in parts]), 0))

    def score(self, n: int, among: int = 1) -> Score:
        """With its 95 % interval; wider for the one picked out of `among` that were compared (Bonferroni)."""
        tail = 2.5 / among
        low, high = np.percentile(self.drawn, [tail, 100 - tail])
        return Score(self.value, float(low), float(high), n)


@dataclass(frozen=True, slots=True)
class Change:
    """One task of two models: `change` is turned so that more is better.

    Of a loss it is the part of the first model's that is gone (negative: that came on top), of anything else the
    difference. p is that of McNemar's exact test, or of the sign test; `p_adjusted` allows for all tasks of the model.
    """

    task: str
    side: Side
    measure: str
    first: float
    second: float
    change: Score
    better: int
    worse: int
    p: float
    p_adjusted: float

    @property
    def verdict(self) -> Verdict:
        return verdict_of(self.change, self.p_adjusted)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


def draw(first: Sheet, second: Sheet) -> Draws:
    """The change from the first to the second, with its resamples; both hold the same exercises."""
    assert first.names == second.names, "models are compared at the same exercises"
    before, after = weighted(first), weighted(second)
    rows = len(first.names)
    chosen = np.random.default_rng(SEED).integers(0, rows, (RESAMPLES, rows))
    every = np.arange(rows)[None]
    lower = first.measure.lower
    return Draws(float(gain(before, after, every, lower=lower)[0]), gain(before, after, chosen, lower=lower))


def weighted(sheet: Sheet) -> Float[np.ndarray, "2 N"]:
    weights = np.asarray(sheet.weights, dtype=np.float64)
    return np.stack([np.asarray(sheet.values, dtype=np.float64) * weights, weights])


def gain(before: np.ndarray, after: np.ndarray, chosen: np.ndarray, *, lower: bool) -> np.ndarray:
    """Of every row of choices the change: a loss as a part of what it was, anything else as it is."""
    one, other = (side[0, chosen].sum(1) / side[1, chosen].sum(1) for side in (before, after))
    if not lower:
        return other - one
    return (one - other) / np.maximum(one, 1e-12)


def compare(first: Sheet, second: Sheet, found: Draws) -> Change:
    """The change whose draws were `found`, with a test of its own."""
    one, other = np.asarray(first.values), np.asarray(second.values)
    gaps = (one - other) if first.measure.lower else (other - one)
    better, worse = int((gaps > 0).sum()), int((gaps < 0).sum())
    p = binomial_p(worse, better)
    return Change(
        first.task,
        first.side,
        first.measure.name,
        first.score.value,
        second.score.value,
        found.score(len(one)),
        better,
        worse,
        p,
        p,
    )
