"""Conversations in files: one record of messages a line, as training reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tunesmith.data.config import SourceConfig
from tunesmith.data.formats import convert, recognise
from tunesmith.data.sources import read_source
from tunesmith.data.tally import Tally
from tunesmith.data.tokenizer import to_json as message_json
from tunesmith.errors import DataError, TunesmithError, UsageError, Where
from tunesmith.track.files import replace_text, to_json
from tunesmith.types import Conversation, Message


def save(messages: Sequence[Message], path: Path) -> str:
    """Add the conversation to a .jsonl file, or let it take the place of the last one there, which it goes on from.

    What was done. UsageError E484: there is nothing to save, or the file holds something else.
    """
    where = Where(str(path))
    if not any(message.role == "assistant" for message in messages):
        raise UsageError("E484", "there is no answer to save yet", where=where, fixes=["ask first"])
    if path.suffix != ".jsonl":
        fixes = [f"/save {path.with_suffix('.jsonl')}"]
        raise UsageError("E484", "conversations are saved in .jsonl files", where=where, fixes=fixes)
    if path.is_dir() or not path.parent.is_dir():
        message = f"{path} is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise UsageError("E484", message, where=where, fixes=["/save FILE.jsonl in a folder that is there"])
    lines = [] if not path.exists() else path.read_text("utf-8").split("\n")
    try:
        before = conversations(path) if any(line.strip() for line in lines) else []
    except TunesmithError as error:
        evidence, fixes = [error.diagnostic.message], ["save to another file"]
        message = "the file holds something else than conversations"
        raise UsageError("E484", message, where=where, evidence=evidence, fixes=fixes) from error
    goes_on = bool(before) and before[-1] == tuple(messages[: len(before[-1])])
    kept = [line for line in lines if line.strip()][: len(before) - goes_on]
    record = to_json({"messages": [message_json(message) for message in messages]})
    replace_text(path, "".join(f"{line}\n" for line in [*kept, record]))
    return f"{'replaced' if goes_on else 'added as'} conversation {len(kept) + 1} of {path}"


class Loaded(NamedTuple):
    """A conversation up to its last answer, the question behind it, and how many other messages follow there."""

    messages: tuple[Message, ...]
    question: str | None = None
    left_out: int = 0


def load(path: Path) -> Loaded:
    """The last conversation of a file. DataError E484 when it has none."""
    found = conversations(path)
    if not found:
        raise DataError("E484", "the file holds no conversation", where=Where(str(path)), fixes=["/load another file"])
    messages = found[-1]
    last = max(at for at, message in enumerate(messages) if message.role == "assistant")
    head, rest = messages[: last + 1], messages[last + 1 :]
    if len(rest) == 1 and rest[0].role == "user":
        return Loaded(head, rest[0].content)
    return Loaded(head, None, len(rest))


def conversations(path: Path) -> list[tuple[Message, ...]]:
    """Every record of a file, as training reads it."""
    source = SourceConfig(path=str(path))
    found: list[tuple[Message, ...]] = []
    for record in read_source(source, Tally()):
        entry = convert(record, recognise(record, source, "sequence"), source.columns, "sequence")
        if not isinstance(entry, Conversation):
            raise DataError("E484", "a record is no conversation", where=Where(record.file, record.line))
        found.append(entry.messages)
    return found
