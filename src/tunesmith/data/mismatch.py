"""Feedback side by side: good and bad spread evenly, and prompts joined with answers to other prompts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tunesmith.data.prepared import Prepared
from tunesmith.errors import DataError, Fix
from tunesmith.types import Example


def spread(order: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The same examples so that every stretch holds each label in about its overall share, in the order given."""
    places = np.empty(len(order))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        places[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(places, kind="stable")]


def partners(prompts: np.ndarray, seed: int) -> np.ndarray:
    """For every example one with another prompt, fixed by the seed (arXiv:2402.01306 section 4.1).

    Raises DataError E280 when all prompts are the same.
    """
    count = len(prompts)
    circle = np.random.default_rng((seed, 3)).permutation(count)
    found = np.full(count, -1)
    shift = 1
    open_places = np.arange(count)  # places of the circle that still lack a partner
    while len(open_places) and shift < count:
        here, there = circle[open_places], circle[(open_places + shift) % count]
        differs = prompts[here] != prompts[there]
        found[here[differs]] = there[differs]
        open_places = open_places[~differs]
        shift += 1
    if len(open_places):
        raise DataError(
            "E280",
            "every record has the same prompt: KTO compares prompts with answers to other prompts",
            fixes=[Fix("use pairs of answers to the one prompt", {"objective": "dpo"})],
        )
    return found


def mismatched(prompt: Example, other: Example) -> Example:
    """The prompt of one example with the answer of another, token for token."""
    cut, begin = prompt.cuts[0], other.cuts[0]
    tokens = np.concatenate([prompt.tokens[:cut], other.tokens[begin:]])
    weights = np.concatenate([prompt.weights[:cut], other.weights[begin:]])
    return replace(prompt, tokens=tokens, weights=weights, labels=())


class Mismatch:
    """Prompts of examples with the answers of their partners."""

    def __init__(self, prepared: Prepared, seed: int) -> None:
        self.prepared = prepared
        self.partners = partners(prepared.prompt_hashes, seed)

    def example(self, index: int) -> Example:
        return mismatched(self.prepared[index], self.prepared[int(self.partners[index])])
