"""Figures over columns of numbers: correlations, ranks, calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from tunesmith.evaluate.metrics import Score, proportion, resampled

BINS = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions whose confidence is in [low, high): how sure they were on average, and how often they were right."""

    low: float
    high: float
    confidence: float
    right: Score

    def to_json(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "confidence": self.confidence, "right": self.right.to_json()}


def sigmoid(values: Sequence[float] | np.ndarray) -> Float[np.ndarray, " n"]:
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(values, dtype=np.float64)))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's r; NaN when a column is constant."""
    a, b = one - one.mean(), other - other.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else math.nan


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rho: Pearson's r of the ranks, equal values sharing the mean of theirs."""
    return correlation(ranks(one), ranks(other))


def ranks(values: np.ndarray) -> Float[np.ndarray, " n"]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[place]


def area_under_curve(scores: np.ndarray, good: np.ndarray) -> float:
    """How often a good answer has the higher score than a bad one, ties one half; NaN with one class alone."""
    above, below = int((good > 0.5).sum()), int((good <= 0.5).sum())
    if not above or not below:
        return math.nan
    return float((ranks(scores)[good > 0.5].sum() - above * (above + 1) / 2) / (above * below))


def calibration(confidence: np.ndarray, right: np.ndarray, lowest: float) -> list[Bin]:
    """Bins of equal width from `lowest` to 1; empty ones are left out."""
    edges = np.linspace(lowest, 1, BINS + 1)
    place = bin_of(confidence, lowest)
    return [
        Bin(edges[at], edges[at + 1], float(confidence[place == at].mean()), proportion(right[place == at].tolist()))
        for at in range(BINS)
        if (place == at).any()
    ]


def calibration_error(confidence: np.ndarray, right: np.ndarray, lowest: float) -> float:
    """Expected calibration error: mean over predictions of |share right - mean confidence| of their bin."""
    place = bin_of(confidence, lowest)
    gaps = np.abs(np.bincount(place, right - confidence, BINS))
    return float(gaps.sum() / len(confidence))


def calibration_score(confidence: np.ndarray, right: np.ndarray, lowest: float) -> Score:
    return resampled(lambda c, r: calibration_error(c, r, lowest), confidence, right)


def bin_of(confidence: np.ndarray, lowest: float) -> np.ndarray:
    return np.clip(((confidence - lowest) / (1 - lowest) * BINS).astype(int), 0, BINS - 1)
