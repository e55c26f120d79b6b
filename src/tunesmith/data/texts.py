"""All texts of an entry, whatever it is."""

from __future__ import annotations

from collections.abc import Iterator

from tunesmith.data.formats import Entry
from tunesmith.types import Completion, Conversation, Document, Feedback, Labelled, Pair, Process, Turns


def texts_of(entry: Entry) -> Iterator[str]:
    """Every text a model would see, in order."""
    for turns in _parts(entry):
        if isinstance(turns, str):
            yield turns
        else:
            yield from (message.content for message in turns)


def is_chat(entry: Entry) -> bool:
    """Whether the entry needs a chat template."""
    return any(not isinstance(part, str) for part in _parts(entry))


def _parts(entry: Entry) -> tuple[Turns, ...]:
    if isinstance(entry, Conversation):
        return (entry.messages,)
    if isinstance(entry, Completion):
        return entry.prompt, entry.completion
    if isinstance(entry, Document | Labelled):
        return (entry.text,)
    if isinstance(entry, Pair):
        return entry.prompt, entry.chosen, entry.rejected
    if isinstance(entry, Feedback):
        return entry.prompt, entry.answer
    return entry.prompt, *(entry.steps if isinstance(entry, Process) else entry.answers)
