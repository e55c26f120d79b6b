"""Answers in steps become a chain of segments, each read at the token that ends its step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from tunesmith.data.config import DataConfig
from tunesmith.data.outcome import Outcome, control_text, end_of_text
from tunesmith.data.overlong import exchanges_of, join
from tunesmith.data.prefix import find_answer
from tunesmith.data.tokenizer import Tokenizer, Tokens
from tunesmith.errors import DataError, Where
from tunesmith.types import Conversation, Example, Message, Process, Task


def encode_process(entry: Process, tokenizer: Tokenizer, settings: DataConfig, task: Task) -> Outcome:
    """The steps after their prompt, joined by line breaks; the value of a step is read at its last token."""
    outcome = Outcome()
    outcome.note_control_text(control_text(tokenizer, [entry.prompt, "\n".join(entry.steps)]), settings)
    example = _example(entry, tokenizer, task)
    outcome.length = len(example)
    if len(example) > settings.max_length:
        outcome.note_overlong(len(example), settings)
        shorter = _shortened(entry, tokenizer, settings, task) if settings.overlong == "cut_turns" else None
        outcome.notes["cut"] += shorter is not None
        return outcome.close([] if shorter is None else [shorter])
    return outcome.close([example])


def joined(steps: Sequence[str]) -> str:
    """The steps as one text, with a line break between two that have none between them."""
    text = steps[0]
    for step in steps[1:]:
        text += step if text.endswith("\n") or step.startswith("\n") else "\n" + step
    return text


def _example(entry: Process, tokenizer: Tokenizer, task: Task) -> Example:
    said = _plain(entry, tokenizer) if isinstance(entry.prompt, str) else _chat(entry, tokenizer)
    weights = np.zeros(len(said.ids), dtype=np.float32)
    if task.reads == "values":
        weights[np.asarray(said.cuts[1:]) - 1] = 1
    else:
        weights[:] = said.trained
    return Example(said.ids, weights, entry.file, entry.line, said.cuts[:-1], entry.labels, chained=True)


class _Said(NamedTuple):
    ids: np.ndarray
    trained: np.ndarray
    cuts: tuple[int, ...]  # where each step begins, and where the last one ends


def _plain(entry: Process, tokenizer: Tokenizer) -> _Said:
    """Prompt and steps as one text, between the tokens that begin and end a text."""
    assert isinstance(entry.prompt, str), "the caller looks"
    before = tokenizer.control.shield(entry.prompt)
    text = before + tokenizer.control.shield(joined(entry.steps))
    tokens = tokenizer.encode_rendered(text)
    lead = tokenizer.start_ids
    cuts = tuple(len(lead) + cut for cut in step_cuts(entry, tokens, len(before), text, tokenizer))
    ids = np.asarray([*lead, *tokens.ids, end_of_text(tokenizer)], dtype=np.int32)
    trained = np.zeros(len(ids), dtype=np.float32)
    trained[cuts[0] :] = 1
    return _Said(ids, trained, cuts)


def _chat(entry: Process, tokenizer: Tokenizer) -> _Said:
    assert not isinstance(entry.prompt, str), "the caller looks"
    count = len(entry.prompt)
    chat = Conversation((*entry.prompt, Message("assistant", joined(entry.steps))), entry.file, entry.line)
    view, before = find_answer(chat, tokenizer, [0.0] * count + [1.0], count)
    tokens = tokenizer.encode_rendered(view.text)
    return _Said(view.ids, view.weights, tuple(step_cuts(entry, tokens, len(before), view.text, tokenizer)))


def step_cuts(entry: Process, tokens: Tokens, start: int, text: str, tokenizer: Tokenizer) -> list[int]:
    """Where the tokens of each step begin, and where those of the last one end (E223 when two share a token)."""
    cuts = [int(np.searchsorted(tokens.starts, start))]
    place = start
    for index, step in enumerate(entry.steps):
        said = tokenizer.control.shield(step).strip()
        found = text.find(said, place)
        if found < 0:
            raise _unfound(entry, index, "the chat template does not keep its text")
        place = found + len(said)
        cuts.append(int(np.searchsorted(tokens.starts, place)))
        if cuts[-1] <= cuts[-2]:
            raise _unfound(entry, index, "it shares its only token with its neighbour")
    return cuts


def _unfound(entry: Process, index: int, why: str) -> DataError:
    return DataError(
        "E223",
        f"step {index + 1} cannot be told apart: {why}",
        where=Where(entry.file, entry.line, field=f"steps[{index}]"),
        fixes=["join it with the step before", "leave such records out: data.on_bad=skip"],
    )


def _shortened(entry: Process, tokenizer: Tokenizer, settings: DataConfig, task: Task) -> Example | None:
    """The steps after the prompt without its oldest exchanges, as few as make it fit; None when none do."""
    if isinstance(entry.prompt, str):
        return None
    head, exchanges = exchanges_of(entry.prompt)
    for first in range(1, len(exchanges)):
        shorter = replace(entry, prompt=(*head, *join(exchanges[first:])))
        example = _example(shorter, tokenizer, task)
        if len(example) <= settings.max_length:
            return example
    return None
