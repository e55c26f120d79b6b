"""Sources to entries: records read, their shape recognised, and converted, with every fault counted."""

from __future__ import annotations

from collections.abc import Iterator

from tunesmith.data.config import SourceConfig
from tunesmith.data.formats import convert, recognise
from tunesmith.data.sources import open_source
from tunesmith.data.tally import Tally
from tunesmith.errors import DataError
from tunesmith.types import Completion, Conversation, Document

Entry = Conversation | Completion | Document


def read_entries(source: SourceConfig, tally: Tally, limit: int | None = None) -> Iterator[Entry]:
    """The first `limit` good entries of a source; the shape of its first record holds for all of them.

    Faults go to the tally, which raises them when the file ends.
    """
    shape = None
    taken = 0
    for records in open_source(source, tally):
        for record in records:
            try:
                shape = shape or recognise(record, source)
                entry = convert(record, shape, source.columns)
            except DataError as error:
                tally.refuse(error.diagnostic, alike=alike(error))
                continue
            yield entry
            taken += 1
            if taken == limit:
                return


def alike(error: DataError) -> str:
    """Faults of one code and field are told together."""
    where = error.diagnostic.where
    return f"{error.diagnostic.code} {where.field if where is not None else ''}"
