"""Examples of every kind of record that begin alike: a system prompt for all, questions for some."""

from __future__ import annotations

import numpy as np

from tunesmith.types import Example, Kind, Reads

SYSTEM, QUESTION = 20, 18  # tokens
VOCABULARY = 97


def alike(
    kind: Kind, reads: Reads = "logprobs", *, count: int = 7, vocabulary: int = 97, seed: int = 2
) -> list[Example]:
    """`count` records; two in three share the system prompt, neighbours among them share a question as well.

    They do not stand in the order of what they share.
    """
    dice = np.random.default_rng(seed)
    system = dice.integers(3, VOCABULARY, SYSTEM)
    questions = [dice.integers(3, VOCABULARY, QUESTION) for _ in range(2)]
    made = []
    for number in range(count):
        own = dice.integers(3, VOCABULARY, int(dice.integers(1, 6)))
        parts = [own] if number % 3 == 2 else [system, questions[number % 2], own[: number % 4]]
        made.append(judged(dice, kind, reads, np.concatenate(parts), number + 1))
    return made


def judged(dice: np.random.Generator, kind: Kind, reads: Reads, prompt: np.ndarray, line: int) -> Example:
    """A record of the kind with this prompt."""
    labels = {"pair": (0.0, 0.0), "feedback": (float(line % 2),), "ranking": (2.0, 1.0, 0.0), "process": (1.0, 0.0)}
    own = labels.get(kind, ())
    lengths = [int(dice.integers(2, 7)) for _ in range(max(1, len(own)))]
    tokens = np.concatenate([prompt, dice.integers(3, VOCABULARY, sum(lengths))]).astype(np.int32)
    ends = np.cumsum(lengths) + len(prompt)
    weights = np.zeros(len(tokens), dtype=np.float32)
    if reads == "values":
        weights[ends - 1] = 1
    else:
        weights[len(prompt) :] = dice.choice([0.5, 1.0], len(tokens) - len(prompt)) if kind == "sequence" else 1
    cuts = () if kind in ("sequence", "label") else (len(prompt), *ends[:-1].tolist())
    given = (float(line % 3),) if kind == "label" else own
    return Example(tokens, weights, "given", line, cuts, given, chained=kind == "process")
