"""Sources to entries: records read, their shape recognised, and converted, with every fault counted."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import replace

from tunesmith.data.config import Shape, SourceConfig
from tunesmith.data.formats import Entry, convert, recognise
from tunesmith.data.sources import open_source
from tunesmith.data.tables import row_group_ends
from tunesmith.data.tally import Tally
from tunesmith.errors import DataError, Diagnostic, Where
from tunesmith.types import Completion, Document, Record

__all__ = ["Entry", "alike", "read_entries"]


def read_entries(source: SourceConfig, tally: Tally | None = None, limit: int | None = None) -> Iterator[Entry]:
    """The first `limit` good entries of a source; the shape of a file's first record holds for the whole file.

    Faults go to the tally. The first one ends the stream of entries, but its file is read to the end, so that the error
    which is raised then says how many are alike.
    """
    tally = tally or Tally()
    taken = 0
    for records in open_source(source, tally):
        shape: Shape | None = None
        stranger: DataError | None = None
        for record in records:
            try:
                shape = shape or recognise(record, source)
                entry = convert(record, shape, source.columns)
            except DataError as error:
                if shape is None and tally.on_bad == "error":
                    raise
                stranger = stranger or error
                tally.refuse(_with_row_group(error.diagnostic, record), alike(error))
                continue
            if tally.failing:
                continue
            _warn_of_nul(entry, tally)
            yield entry
            taken += 1
            if taken == limit:
                tally.end_file(record.file)
                return
        if shape is None and stranger is not None:
            raise stranger


def alike(error: DataError) -> str:
    """Faults with the same code, field and message are told together, whatever their turn index and numbers."""
    found = error.diagnostic
    field = found.where.field if found.where is not None else ""
    return re.sub(r"\d+", "#", f"{found.code} {field} {found.message}")


def _with_row_group(diagnostic: Diagnostic, record: Record) -> Diagnostic:
    if not record.file.endswith(".parquet"):
        return diagnostic
    group = bisect.bisect_left(row_group_ends(record.file), record.line)
    return replace(diagnostic, evidence=(*diagnostic.evidence, f"row {record.line:,} is in row group {group}"))


def _warn_of_nul(entry: Entry, tally: Tally) -> None:
    if isinstance(entry, Document):
        texts: tuple[str, ...] = (entry.text,)
    elif isinstance(entry, Completion):
        texts = (entry.prompt, entry.completion)
    else:
        texts = tuple(message.content for message in entry.messages)
    if any("\0" in text for text in texts):
        where = Where(entry.file, entry.line)
        tally.warn(
            Diagnostic("W030", "a text holds the NUL character (\\u0000); it is trained as it is", "warning", where)
        )
