"""Two models on the same exercises: differences with intervals, and whether chance explains them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from tunesmith.evaluate.metrics import Score, mean, proportion, ratio, resampled
from tunesmith.evaluate.suite import Measure, Result

Verdict = Literal["worse", "better", "open"]
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Difference:
    """One measure of two models on exercises that both have done.

    `change` is second minus first, turned so that more is better. `better` and `worse` count exercises, p is that of
    McNemar's exact test where results are right or wrong and of the sign test elsewhere; `p_adjusted` allows for how
    many of its family are compared at once (Holm 1979): the main figures of all tasks, the other ones, the categories.
    """

    task: str
    measure: str
    category: str  # empty: all
    base: str
    model: str
    n: int
    first: float
    second: float
    change: Score
    better: int
    worse: int
    test: Literal["mcnemar", "sign"]
    p: float
    main: bool = False
    p_adjusted: float = 1.0

    @property
    def verdict(self) -> Verdict:
        return verdict_of(self.change, self.p_adjusted)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


def verdict_of(change: Score, p: float) -> Verdict:
    """Worse or better only where the interval and the test, adjusted where it was, both say so."""
    if p > LEVEL:
        return "open"
    return "worse" if change.high < 0 else "better" if change.low > 0 else "open"


def binomial_p(few: int, many: int) -> float:
    """Two-sided p of so uneven a split of `few + many` tosses of a fair coin, exact; 1 without any."""
    n, least = few + many, min(few, many)
    if n == 0:
        return 1.0
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(least + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    order = sorted(range(len(ps)), key=lambda at: ps[at])
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[at]))
        adjusted[at] = highest
    return adjusted


def score_of(results: Sequence[Result], measure: Measure) -> Score:
    """The figure of some results: a share, a mean, or a mean over weights."""
    values = [one.scores[measure.name] for one in results]
    weights = [one.weights.get(measure.name, 1.0) for one in results]
    if any(measure.name in one.weights for one in results):
        return ratio([value * weight for value, weight in zip(values, weights, strict=True)], weights)
    return proportion(values) if measure.binary else mean(values)


def difference(
    first: Mapping[str, Result],
    second: Mapping[str, Result],
    measure: Measure,
    names: tuple[str, str],
    category: str = "",
) -> Difference | None:
    """By the exercises that both have, of one category or of all; None without any."""
    shared = [name for name in first if name in second and category in ("", first[name].category)]
    if not shared:
        return None
    one, other = (np.array([side[name].scores[measure.name] for name in shared]) for side in (first, second))
    weights, others = (
        np.array([side[name].weights.get(measure.name, 1.0) for name in shared]) for side in (first, second)
    )
    sign = -1.0 if measure.lower else 1.0

    def change(a: np.ndarray, b: np.ndarray, w: np.ndarray, v: np.ndarray) -> float:
        return sign * float((b * v).sum() / v.sum() - (a * w).sum() / w.sum())

    gaps = sign * (other - one)
    better, worse = int((gaps > 0).sum()), int((gaps < 0).sum())
    return Difference(
        first[shared[0]].task,
        measure.name,
        category,
        *names,
        len(shared),
        float((one * weights).sum() / weights.sum()),
        float((other * others).sum() / others.sum()),
        resampled(change, one, other, weights, others),
        better,
        worse,
        "mcnemar" if measure.binary else "sign",
        binomial_p(worse, better),
    )
