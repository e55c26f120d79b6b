"""The answers of one example as shown: what all begin with, then each from the first token that differs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tunesmith.data.judgements import answers_of, spans_of
from tunesmith.data.pieces import Piece, pieces_of
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.types import Example, Task

_PAIR = ("chosen", "rejected")


@dataclass(frozen=True, slots=True)
class PreviewAnswer:
    """An answer (or a step) after the prompt; its first `same` tokens begin every answer of the record."""

    name: str
    tokens: int
    same: tuple[Piece, ...]
    pieces: tuple[Piece, ...]  # from the first token that differs


def prompt_of(example: Example, tokenizer: Tokenizer) -> tuple[Piece, ...]:
    """The tokens that all answers share; the whole of a sequence without answers."""
    return pieces_of(_part(example, 0, example.cuts[0] if example.cuts else len(example)), tokenizer)


def answers_shown(example: Example, tokenizer: Tokenizer, task: Task) -> Iterator[PreviewAnswer]:
    """Each answer with its name."""
    same = 0 if example.chained or len(example.cuts) < 2 else _same(example)
    for index, (start, end) in enumerate(spans_of(example)):
        yield PreviewAnswer(
            _name(example, index, task),
            end - start,
            pieces_of(_part(example, start, start + same), tokenizer),
            pieces_of(_part(example, start + same, end), tokenizer),
        )


def label_of(example: Example, task: Task) -> str:
    """The label of a text that is judged as a whole."""
    if task.kind != "label":
        return ""
    return task.classes[int(example.labels[0])] if task.classes else f"{example.labels[0]:g}"


def _name(example: Example, index: int, task: Task) -> str:
    label = example.labels[index]
    if task.kind == "pair":
        margin = f" (margin {label:g})" if label else ""
        return f"{_PAIR[index]}{margin}"
    if task.kind == "feedback":
        return "good answer" if label else "bad answer"
    if task.kind == "process":
        return f"step {index + 1} (label {label:g})"
    return f"answer {index + 1} (score {label:g})"


def _same(example: Example) -> int:
    """How many tokens all answers begin with."""
    answers = answers_of(example)
    shortest = min(map(len, answers))
    differing = np.flatnonzero(np.any([answer[:shortest] != answers[0][:shortest] for answer in answers], axis=0))
    return int(differing[0]) if len(differing) else shortest


def _part(example: Example, start: int, end: int) -> Example:
    return replace(example, tokens=example.tokens[start:end], weights=example.weights[start:end], cuts=(), labels=())
