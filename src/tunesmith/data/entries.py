"""Sources to entries: records read, their shape recognised, and converted, with every fault counted."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tunesmith.data.config import Shape, SourceConfig
from tunesmith.data.encoding import quoted
from tunesmith.data.formats import Entry, convert, is_judged, recognise
from tunesmith.data.sources import open_source
from tunesmith.data.tables import row_group_ends
from tunesmith.data.tally import Tally
from tunesmith.data.texts import texts_of
from tunesmith.errors import DataError, Diagnostic, Fix, Where
from tunesmith.types import Kind, Record

__all__ = ["Entry", "alike", "read_entries"]


def read_entries(
    source: SourceConfig, tally: Tally | None = None, limit: int | None = None, kind: Kind = "sequence"
) -> Iterator[Entry]:
    """The first `limit` good entries of a source; the shape of a file's first record holds for the whole file.

    `kind` is what the objective learns from: it decides whether a chat with a label is something to imitate, feedback
    or a text to classify.

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
                if shape is None:
                    shape = recognise(record, source, kind)
                    _warn_of_label(record, source, kind, tally)
                entry = convert(record, shape, source.columns, kind)
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


def _warn_of_label(record: Record, source: SourceConfig, kind: Kind, tally: Tally) -> None:
    if kind != "sequence" or not is_judged(record, source):
        return
    warning = Diagnostic(
        "W210",
        "the records say which answers are good and bad; this objective learns to say all of them",
        "warning",
        where=Where(record.file, record.line, field=source.columns.get("label", "label")),
        fixes=(
            Fix("learn from the judgement", {"objective": "kto"}),
            Fix("keep the good answers only", command=f"tunesmith data convert {quoted(Path(record.file))} --to sft"),
        ),
    )
    tally.warn(warning)


def _warn_of_nul(entry: Entry, tally: Tally) -> None:
    if any("\0" in text for text in texts_of(entry)):
        where = Where(entry.file, entry.line)
        tally.warn(
            Diagnostic("W030", "a text holds the NUL character (\\u0000); it is trained as it is", "warning", where)
        )
