"""Feedback side by side: good and bad spread evenly, and prompts joined with answers to other prompts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tunesmith.data.prepared import Prepared
from tunesmith.types import Example

TURNS = 64  # of the circle, before partners are looked for one by one


def spread(order: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The same examples so that every stretch holds each label in about its overall share, in the order given."""
    places = np.empty(len(order))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        places[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.lexsort((labels, places))]


def partners(prompts: np.ndarray, prompt_lengths: np.ndarray, answer_lengths: np.ndarray, seed: int) -> np.ndarray:
    """For every example one with another prompt, fixed by the seed (arXiv:2402.01306 section 4.1).

    A prompt and its partner's answer are no longer than the longest example. A prompt for which all answers are too
    long gets the shortest one, of which the beginning will fit. Preparing made sure that prompts differ.
    """
    count = len(prompts)
    room = int((prompt_lengths + answer_lengths).max()) - prompt_lengths
    circle = np.random.default_rng((seed, 3)).permutation(count)
    found = np.full(count, -1)
    open_places = np.arange(count)  # places of the circle that still lack a partner
    for shift in range(1, min(count, TURNS + 1)):
        here, there = circle[open_places], circle[(open_places + shift) % count]
        fits = (prompts[here] != prompts[there]) & (answer_lengths[there] <= room[here])
        found[here[fits]] = there[fits]
        open_places = open_places[~fits]
        if not len(open_places):
            return found
    chances = np.random.default_rng((seed, 4)).random(count)
    rest = circle[open_places]
    ascending = np.argsort(answer_lengths, kind="stable")
    for prompt in np.unique(prompts[rest]):
        others = ascending[prompts[ascending] != prompt]
        assert len(others), "preparing refuses feedback of a single prompt (E280)"
        mine = rest[prompts[rest] == prompt]
        fitting = np.searchsorted(answer_lengths[others], room[mine], side="right")
        found[mine] = others[(chances[mine] * np.maximum(1, fitting)).astype(int)]
    return found


def mismatched(prompt: Example, other: Example, longest: int) -> Example:
    """The prompt of one example with the answer of another, token for token, up to the longest that may be."""
    cut, begin = prompt.cuts[0], other.cuts[0]
    end = begin + longest - cut
    tokens = np.concatenate([prompt.tokens[:cut], other.tokens[begin:end]])
    weights = np.concatenate([prompt.weights[:cut], other.weights[begin:end]])
    return replace(prompt, tokens=tokens, weights=weights, labels=())


class Mismatch:
    """Prompts of examples with the answers of their partners; `lengths` are those of the joined examples."""

    def __init__(self, prepared: Prepared, seed: int) -> None:
        prompts, lengths = prepared.prompt_lengths, prepared.lengths
        self.prepared = prepared
        self.longest = int(lengths.max())
        self.partners = partners(prepared.prompt_hashes, prompts, lengths - prompts, seed)
        whole = prompts + (lengths - prompts)[self.partners]
        self.lengths = np.minimum(whole, self.longest)
        self.cut: list[int] = np.flatnonzero(whole > self.longest).tolist()  # where the answer did not fit

    def example(self, index: int) -> Example:
        return mismatched(self.prepared[index], self.prepared[int(self.partners[index])], self.longest)

    def joint(self, index: int) -> Example:
        """A prompt with its own answer and, beside it, the partner's: the prompt is computed once."""
        own, other = self.prepared[index], self.example(index)
        (cut,) = own.cuts
        tokens = np.concatenate([own.tokens, other.tokens[cut:]])
        weights = np.concatenate([own.weights, other.weights[cut:]])
        return replace(own, tokens=tokens, weights=weights, cuts=(cut, len(own)), labels=())
