"""General data beside what a model is to learn: so many of every step, evenly, and always the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Mixture:
    """Sources from number `first` on are general; `share` of all examples of an epoch, and of each step, are theirs."""

    first: int
    share: float

    def counts(self, own: float, pools: Sequence[float]) -> list[int]:
        """Examples of each general source in an epoch with `own` others, by their weighted sizes `pools`."""
        total = round(own * self.share / (1 - self.share))
        ends = np.cumsum(pools) / max(1e-12, float(np.sum(pools))) * total
        return np.diff(np.round(ends), prepend=0).astype(int).tolist()


def turn(members: np.ndarray, count: int, epoch: int, seed: tuple[int, ...]) -> np.ndarray:
    """The `count` members that are next in this epoch, around a fixed shuffled circle."""
    circle = np.random.default_rng(seed).permutation(members)
    return np.take(circle, np.arange(epoch * count, (epoch + 1) * count), mode="wrap")


def interleave(own: np.ndarray, general: np.ndarray) -> np.ndarray:
    """Both in their order, the general ones at even distances."""
    total = len(own) + len(general)
    places = ((np.arange(len(general)) + 0.5) * total / max(1, len(general))).astype(int)
    mixed = np.empty(total, dtype=np.int64)
    is_general = np.zeros(total, dtype=bool)
    is_general[places] = True
    mixed[is_general], mixed[~is_general] = general, own
    return mixed
