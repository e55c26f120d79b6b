"""Records with the values that a head gives them: read, encoded, scored, told as rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import nn

from tunesmith.data.chat import encode_record
from tunesmith.data.config import DataConfig, SourceConfig
from tunesmith.data.entries import Entry, read_entries
from tunesmith.data.fields import Fields
from tunesmith.data.formats import form_of
from tunesmith.data.sources import open_source
from tunesmith.data.tally import Tally
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.evaluate.classification import probabilities
from tunesmith.evaluate.scoring import Progress, values_of
from tunesmith.evaluate.statistics import sigmoid
from tunesmith.models.meaning import Meaning
from tunesmith.types import Completion, Conversation, Document, Example, Feedback, Kind, Labelled, Task

Change = Callable[[Entry], Entry]


@dataclass(frozen=True, slots=True)
class Scored:
    """An example and the values of its answers (or steps, or of itself); rewards are raw, as the head gives them."""

    example: Example
    values: Float[np.ndarray, "S C"]

    @property
    def record(self) -> str:
        return f"{self.example.file}:{self.example.line}"

    @property
    def lengths(self) -> list[int]:
        """Tokens of each answer."""
        ends = (*self.example.cuts[1:], len(self.example))
        return [end - start for start, end in zip(self.example.cuts, ends, strict=True)]


@dataclass(frozen=True, slots=True)
class Reading:
    """A source as a head reads it: the kind of its records, what was scored, and what was left out by reason."""

    kind: Kind
    scored: list[Scored]
    unused: dict[str, int]


def kinds_for(meaning: Meaning) -> tuple[Kind, ...]:
    """The kinds of records that a head can be measured on, the most telling first."""
    return ("pair", "ranking", "feedback") if meaning.is_reward else (meaning.kind,)


def kind_of(source: SourceConfig, kinds: Sequence[Kind], otherwise: Kind | None = None) -> Kind:
    """What the first record of a source is; `otherwise`, or the first of `kinds`, when it is none of them."""
    unknown = otherwise or kinds[0]
    for records in open_source(source, Tally("skip")):
        for record in records:
            fields = Fields(record, source.columns)
            for kind in kinds:
                if form_of(fields, kind, source.shape) is not None:
                    return kind
            return unknown
    return unknown


def read_scored(
    model: nn.Module,
    tokenizer: Tokenizer,
    task: Task,
    source: SourceConfig,
    settings: DataConfig,
    *,
    change: Change | None = None,
    on_progress: Progress | None = None,
) -> Reading:
    """All records of a source, read as the task says and scored; what is too long is left out and counted.

    `change` may put another entry in place of one before it is encoded.
    """
    examples: list[Example] = []
    unused: Counter[str] = Counter()
    for entry in read_entries(source, Tally(settings.on_bad), settings.limit, task.kind):
        outcome = encode_record(entry if change is None else change(entry), tokenizer, settings, task)
        if outcome.dropped is not None:
            unused[outcome.dropped] += 1
        examples += outcome.examples
    values = values_of(model, examples, on_progress)
    scored = [Scored(example, rows) for example, rows in zip(examples, values, strict=True)]
    return Reading(task.kind, scored, dict(unused))


def unjudged(entry: Entry, meaning: Meaning) -> Entry:
    """The entry without what it says of its worth: an answer to what stands before it, or a text."""
    if isinstance(entry, Labelled):
        return replace(entry, label=0.0)
    place = entry.file, entry.line
    if isinstance(entry, Document):
        return Labelled(entry.text, 0.0, *place)
    if isinstance(entry, Completion):
        return Feedback(entry.prompt, entry.completion, True, *place)
    if not isinstance(entry, Conversation):
        return entry
    last = max((at for at, message in enumerate(entry.messages) if message.role == "assistant"), default=0)
    if meaning.kind == "label" or last == 0:
        return Labelled(entry.messages, 0.0, *place)
    return Feedback(entry.messages[:last], entry.messages[last : last + 1], True, *place, entry.tools)


def row_of(scored: Scored, kind: Kind, meaning: Meaning) -> dict[str, Any]:
    """What is told of a record: its place, rewards without the offset, classes with their probabilities."""
    example = scored.example
    row: dict[str, Any] = {"file": example.file, "line": example.line, "kind": kind}
    if meaning.classes:
        values = scored.values[-1]
        chances = probabilities(values[None])[0]
        named = {name: float(chance) for name, chance in zip(meaning.classes, chances, strict=True)}
        return {
            **row,
            "class": meaning.classes[int(values.argmax())],
            "probabilities": named,
            "scores": values.tolist(),
        }
    found = scored.values[:, 0] - meaning.offset
    row["scores"] = found.tolist()
    if meaning.kind == "process":
        row["probabilities"] = sigmoid(found).tolist()
    return row


def score_source(
    model: nn.Module,
    tokenizer: Tokenizer,
    meaning: Meaning,
    source: SourceConfig,
    settings: DataConfig,
    on_progress: Progress | None = None,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """A row for every record of a source, whatever it says of its worth, and how many were left out, by reason."""
    kind = kind_of(source, (*kinds_for(meaning), "label", "sequence"))
    task = Task(kind, "values")
    reading = read_scored(
        model,
        tokenizer,
        task,
        source,
        settings,
        change=lambda entry: unjudged(entry, meaning),
        on_progress=on_progress,
    )
    return [row_of(each, kind, meaning) for each in reading.scored], reading.unused
