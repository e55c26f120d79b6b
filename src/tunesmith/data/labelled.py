"""Texts and chats with a class or a value become examples that are read at their last token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tunesmith.data.config import DataConfig, SourceConfig
from tunesmith.data.entries import read_entries
from tunesmith.data.outcome import Outcome, control_text
from tunesmith.data.overlong import cut_turns
from tunesmith.data.prefix import View, whole_view
from tunesmith.data.tally import Tally
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import DataError, Fix, Where
from tunesmith.types import Conversation, Example, Labelled, Task

MOST_CLASSES = 10_000


def find_classes(sources: Sequence[SourceConfig], settings: DataConfig) -> tuple[str, ...]:
    """The names of all classes in the data, sorted; E218 when there are fewer than two, or more than 10,000."""
    names: set[str] = set()
    first: Where | None = None
    tally = Tally(settings.on_bad)
    for source in sources:
        for entry in read_entries(source, tally, settings.limit, "label"):
            assert isinstance(entry, Labelled), "the reader makes what it is asked for"
            first = first or Where(entry.file, entry.line, field="label")
            names.add(class_name(entry.label))
            if len(names) > MOST_CLASSES:
                raise DataError(
                    "E218",
                    f"there are more than {MOST_CLASSES:,} different labels: these are values, not classes",
                    where=Where(entry.file, entry.line, field="label"),
                    fixes=["use an objective that learns numbers (regression)", "check that label is the right column"],
                )
    if len(names) < 2:
        found = f"all labels are {next(iter(names))!r}" if names else "no record was read"
        raise DataError(
            "E218",
            f"there is nothing to tell apart: {found}",
            where=first or Where(", ".join(source.path for source in sources)),
            fixes=["add records of other classes", "check that label is the right column"],
        )
    return tuple(sorted(names))


def class_name(label: str | float) -> str:
    """A class by its text; a number without needless digits."""
    return label if isinstance(label, str) else f"{label:.15g}"


def encode_labelled(entry: Labelled, tokenizer: Tokenizer, settings: DataConfig, task: Task) -> Outcome:
    """The whole text (or chat), read at its last token."""
    outcome = Outcome()
    label = label_value(entry, task)
    outcome.note_control_text(control_text(tokenizer, [entry.text]), settings)
    ids = _ids(entry, tokenizer)
    outcome.length = len(ids)
    if len(ids) > settings.max_length:
        outcome.note_overlong(len(ids), settings)
        ids = _shortened(entry, tokenizer, settings) if settings.overlong == "cut_turns" else None
        outcome.notes["cut"] += ids is not None
    if ids is None:
        return outcome.close([])
    weights = np.zeros(len(ids), dtype=np.float32)
    weights[-1] = 1
    return outcome.close([Example(ids, weights, entry.file, entry.line, labels=(label,))])


def label_value(entry: Labelled, task: Task) -> float:
    """The index of the class, or the number itself; E218 for an unknown class, E213 for what is no number."""
    where = Where(entry.file, entry.line, field="label")
    if task.classes:
        name = class_name(entry.label)
        if name not in task.classes:
            known = ", ".join(task.classes[:20]) + (" ..." if len(task.classes) > 20 else "")
            raise DataError(
                "E218",
                f"the class {name!r} is not among those of the training data",
                where=where,
                evidence=[f"known: {known}"],
                fixes=["add records of this class to data.train", "leave such records out: data.on_bad=skip"],
            )
        return float(task.classes.index(name))
    try:
        value = float(entry.label)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            "E213",
            f"label is {str(entry.label)[:40]!r}; this objective learns numbers",
            where=where,
            fixes=[Fix("learn classes: objective=classify", {"objective": "classify"}), "write numbers as labels"],
        )
    return value


def _ids(entry: Labelled, tokenizer: Tokenizer) -> np.ndarray:
    if isinstance(entry.text, str):
        ids = [*tokenizer.start_ids, *tokenizer.encode(entry.text, specials=False), *tokenizer.end_ids]
        return np.asarray(ids, dtype=np.int32)
    return _view(Conversation(entry.text, entry.file, entry.line), tokenizer).ids


def _view(chat: Conversation, tokenizer: Tokenizer) -> View:
    return whole_view(chat, tokenizer, [1.0] * len(chat.messages))


def _shortened(entry: Labelled, tokenizer: Tokenizer, settings: DataConfig) -> np.ndarray | None:
    if isinstance(entry.text, str):
        return None
    chat = Conversation(entry.text, entry.file, entry.line)
    views = cut_turns(chat, settings.max_length, lambda shorter: [_view(shorter, tokenizer)])
    return views[0].ids if views else None
