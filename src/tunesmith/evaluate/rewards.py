"""What rewards are worth: do they prefer what people prefer, how surely, and do they merely measure length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from tunesmith.evaluate.metrics import Score, mean, proportion, resampled
from tunesmith.evaluate.statistics import (
    area_under_curve,
    calibration,
    calibration_score,
    correlation,
    sigmoid,
)

COIN = 0.5  # confidence of a preference that is none


@dataclass(frozen=True, slots=True)
class Comparison:
    """A preferred answer beside another one to the same prompt: their rewards, and their lengths in tokens."""

    chosen: float
    rejected: float
    chosen_length: int
    rejected_length: int
    source: str
    record: str

    @property
    def margin(self) -> float:
        return self.chosen - self.rejected

    @property
    def longer_by(self) -> int:
        """By how many tokens the chosen answer is longer."""
        return self.chosen_length - self.rejected_length

    @property
    def hit(self) -> float:
        """1 where the preferred answer has the higher reward, 1/2 for a tie."""
        return 0.5 * (1 + math.copysign(1, self.margin)) if self.margin else 0.5


@dataclass(frozen=True, slots=True)
class Ranked:
    """The rewards of all answers to one prompt and the ratings that order them."""

    rewards: tuple[float, ...]
    ratings: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Steps:
    """The values of an answer's steps, and whether each is right (1), wrong (0) or between."""

    values: tuple[float, ...]
    labels: tuple[float, ...]


def pair_scores(pairs: Sequence[Comparison]) -> dict[str, Score]:
    """Accuracy (Wilson), mean margin, calibration error of sigma(margin), and correlations with length."""
    margins, hits = margins_and_hits(pairs)
    longer_by = np.array([pair.longer_by for pair in pairs], dtype=np.float64)
    rewards = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    lengths = [pair.chosen_length for pair in pairs] + [pair.rejected_length for pair in pairs]
    return {
        "accuracy": proportion(hits.tolist()),
        "margin": mean(margins.tolist()),
        "calibration_error": calibration_score(sigmoid(np.abs(margins)), hits, COIN),
        "length_correlation": resampled(correlation, rewards, lengths),
        "margin_length_correlation": resampled(correlation, margins, longer_by),
    }


def pair_detail(pairs: Sequence[Comparison]) -> dict[str, Any]:
    """Reliability bins of sigma(|margin|), and accuracy and margin by source and by length."""
    margins, hits = margins_and_hits(pairs)
    bins = calibration(sigmoid(np.abs(margins)), hits, COIN)
    return {
        "calibration": [each.to_json() for each in bins],
        "breakdown": {name: group(part) for name, part in parts_of(pairs).items() if part},
    }


def group(pairs: Sequence[Comparison]) -> dict[str, Any]:
    """Accuracy and margin of some of the pairs, and by how many tokens their chosen answers are longer."""
    return {
        "accuracy": proportion([pair.hit for pair in pairs]).to_json(),
        "margin": mean([pair.margin for pair in pairs]).to_json(),
        "longer_by": [min(pair.longer_by for pair in pairs), max(pair.longer_by for pair in pairs)],
    }


def margins_and_hits(pairs: Sequence[Comparison]) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    return np.array([pair.margin for pair in pairs]), np.array([pair.hit for pair in pairs])


def parts_of(pairs: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    """Groups of pairs: by source, by which answer is longer, and in quarters by how much longer the chosen one is."""
    found = {f"source {name}": [] for name in sorted({pair.source for pair in pairs})}
    for pair in pairs:
        found[f"source {pair.source}"].append(pair)
    found["chosen longer"] = [pair for pair in pairs if pair.longer_by > 0]
    found["chosen shorter"] = [pair for pair in pairs if pair.longer_by < 0]
    found["equal length"] = [pair for pair in pairs if pair.longer_by == 0]
    edges = np.quantile([pair.longer_by for pair in pairs], [0.25, 0.5, 0.75])
    quarters = np.searchsorted(edges, [pair.longer_by for pair in pairs])
    for quarter in range(4):
        inside = zip(pairs, quarters, strict=True)
        found[f"length quarter {quarter + 1}"] = [pair for pair, place in inside if place == quarter]
    return found


def ranking_scores(records: Sequence[Ranked]) -> dict[str, Score]:
    """Share of pairs of unequal ratings in the right order, averaged over records; how often the best is first."""
    orders = [order_share(each) for each in records]
    known = [share for share in orders if share is not None]
    best = [float(each.ratings[int(np.argmax(each.rewards))] == max(each.ratings)) for each in records]
    return {"accuracy": mean(known), "best_first": proportion(best)} if known else {}


def best_margins(records: Sequence[Ranked]) -> list[float]:
    """By how much the best answers of each record are above those below them, mean against mean; ties have none."""
    found = []
    for each in records:
        best = [
            reward for reward, rating in zip(each.rewards, each.ratings, strict=True) if rating == max(each.ratings)
        ]
        rest = [reward for reward, rating in zip(each.rewards, each.ratings, strict=True) if rating < max(each.ratings)]
        found += [float(np.mean(best) - np.mean(rest))] if rest else []
    return found


def order_share(record: Ranked) -> float | None:
    """Share of the record's pairs of unequal ratings that the rewards order alike, ties one half; None without any."""
    hits = [
        0.5 * (1 + np.sign(record.rewards[i] - record.rewards[j]))
        for i, rating in enumerate(record.ratings)
        for j, other in enumerate(record.ratings)
        if rating > other
    ]
    return float(np.mean(hits)) if hits else None


def feedback_scores(rewards: Sequence[float], good: Sequence[float]) -> dict[str, Score]:
    """How well rewards part good answers from bad ones: area under the curve, and accuracy of sigma(reward) > 1/2."""
    found = {"auc": resampled(area_under_curve, rewards, good)} if len(set(good)) == 2 else {}
    hits = [float((reward > 0) == (label > 0.5)) for reward, label in zip(rewards, good, strict=True)]
    chance = sigmoid(rewards)
    sure, right = np.maximum(chance, 1 - chance), np.array(hits)
    return {**found, "accuracy": proportion(hits), "calibration_error": calibration_score(sure, right, COIN)}


def process_scores(records: Sequence[Steps]) -> dict[str, Score]:
    """Accuracy over all steps, and how often the first wrong step is found (or that there is none)."""
    hits = [float((v > 0) == (y > 0.5)) for each in records for v, y in zip(each.values, each.labels, strict=True)]
    firsts = [
        float(first_error([v > 0 for v in each.values]) == first_error([y > 0.5 for y in each.labels]))
        for each in records
    ]
    return {"step_accuracy": proportion(hits), "first_error_accuracy": proportion(firsts)}


def first_error(right: Sequence[bool]) -> int:
    """Place of the first wrong step, or the number of steps when all are right."""
    return next((place for place, good in enumerate(right) if not good), len(right))
