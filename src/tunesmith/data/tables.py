"""Records from tables: csv and tsv line by line, parquet one row group at a time."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.data.content import LINE_LIMIT, Kind, bomb, bomb_bound, cannot_read, read_text_lines, too_long
from tunesmith.data.tally import Tally
from tunesmith.errors import DataError, Diagnostic, Fix, MachineError, Where
from tunesmith.types import Record

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ROWS = 1000  # turned into Python objects at a time
ROOM = 512 * 2**20  # bytes of a batch, were each of its rows as long as the whole column chunk
VALUE = 8  # bytes that a value of Parquet counts as, which may take none there


def read_csv(path: Path, kind: Kind, tally: Tally) -> Iterator[Record]:
    """Rows as records of texts; `line` is where the row begins. CRLF inside quoted cells is read as LF."""
    csv.field_size_limit(LINE_LIMIT)
    file = str(path)
    rows = csv.reader(
        (f"{line}\n" for line in read_text_lines(path, kind)), delimiter="\t" if kind == "tsv" else ",", strict=True
    )
    header: list[str] = []
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            tally.refuse(_csv_fault(path, line, rows.line_num, error))
            continue
        if row is None:
            return
        if not row or (len(row) == 1 and not row[0].strip() and len(header) != 1):
            continue
        if not header:
            header = _header(path, row, line, kind)
        elif len(row) != len(header):
            tally.refuse(_ragged(path, row, header, line))
        else:
            yield Record(dict(zip(header, row, strict=True)), file, line)


def _csv_fault(path: Path, line: int, last: int, error: csv.Error) -> Diagnostic:
    unclosed = str(error) in ("unexpected end of data", f"field larger than field limit ({LINE_LIMIT})")
    message = "a quote is opened and never closed" if unclosed else f"not CSV: {error}"
    return Diagnostic(
        "E044",
        message,
        where=Where(str(path), line),
        evidence=(f"the row goes from line {line:,} to line {last:,}",) if last > line else (),
        fixes=(Fix('put cells with commas, quotes or line breaks in "quotes" and write a quote inside as ""'),),
    )


def _header(path: Path, row: list[str], line: int, kind: Kind) -> list[str]:
    where = Where(str(path), line)
    other = next((mark for mark in (";", "\t", "|", ",") if len(row) == 1 and mark in row[0]), None)
    if other is not None:
        name = "a tab" if other == "\t" else repr(other)
        fix = "name the file .tsv" if other == "\t" else f"save it with {'tabs' if kind == 'tsv' else 'commas'}"
        raise DataError("E044", f"one column only: the cells seem to be separated by {name}", where=where, fixes=[fix])
    twice = next((name for index, name in enumerate(row) if name in row[:index]), None)
    if twice is not None:
        columns = [str(index + 1) for index, name in enumerate(row) if name == twice]
        message = f"the header names {twice!r} in columns {' and '.join(columns)}"
        raise DataError("E035", message, where=where, fixes=["rename or remove one of the columns"])
    return row


def _ragged(path: Path, row: list[str], header: list[str], line: int) -> Diagnostic:
    return Diagnostic(
        "E044",
        f"{len(row)} columns; the header has {len(header)}",
        where=Where(str(path), line),
        evidence=(f"header: {', '.join(header)[:120]}",),
        fixes=(Fix('put cells that hold a comma in "quotes"'),),
    )


def read_parquet(path: Path, tally: Tally, wanted: Collection[str]) -> Iterator[Record]:
    """Rows as records; `line` counts rows from 1.

    Columns that no text comes from (bytes, times, maps) are left out, and refused (E043) when `wanted` names them.
    """
    table = _open(path)
    columns = _columns(path, table, wanted, tally)
    _refuse_bomb(path, table)
    row, file = 0, str(path)
    for group in range(table.metadata.num_row_groups):
        for batch in _batches(path, table, group, columns):
            for value in batch:
                row += 1
                if value is None:
                    tally.refuse(too_long(path, row))
                else:
                    yield Record(value, file, row)


def _refuse_bomb(path: Path, table: pq.ParquetFile) -> None:
    """Unsafe (E046) when the footer promises far more bytes or values than the file has, before any is read.

    Columns that repeat themselves are small there too: a dictionary counts once.
    """
    packed = path.stat().st_size
    unpacked = 0
    for group in map(table.metadata.row_group, range(table.metadata.num_row_groups)):
        values = sum(group.column(index).num_values for index in range(group.num_columns))
        unpacked += max(group.total_byte_size, VALUE * values)
    if unpacked > bomb_bound(packed):
        raise bomb(path, packed, Fix("save it as .jsonl yourself if you trust it"))


@lru_cache(maxsize=1)
def row_group_ends(file: str) -> tuple[int, ...]:
    """The last row (from 1) of each row group."""
    metadata = _open(Path(file)).metadata
    return tuple(accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)))


def _open(path: Path) -> pq.ParquetFile:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        fix = Fix("install it", command="pip install pyarrow")
        raise MachineError("E172", "tally parquet needs pyarrow", where=Where(str(path)), fixes=[fix]) from error
    try:
        return pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise _damaged(path, f"not a whole Parquet file: {_short(error)}") from error
    except OSError as error:
        if error.errno is None:
            raise _damaged(path, f"not a whole Parquet file: {_short(error)}") from error
        raise cannot_read(path, error) from error


def _columns(path: Path, table: pq.ParquetFile, wanted: Collection[str], tally: Tally) -> list[str]:
    """The columns that can be read as JSON-like values."""
    kept = []
    for column in table.schema_arrow:
        strange = _strange(column.type)
        if strange is None:
            kept.append(column.name)
        elif column.name in wanted:
            raise DataError(
                "E043",
                f"column {column.name!r} has the type {strange}; want text, numbers, lists or structs",
                where=Where(str(path), 1, field=column.name),
                evidence=[f"type {column.type}, row group 0 of {table.metadata.num_row_groups}"],
                fixes=["save the column as text"],
            )
        else:
            message = f"column {column.name!r} is not read: its type is {strange}"
            tally.warn(Diagnostic("W031", message, "info", Where(str(path), field=column.name)))
    return kept


def _strange(kind: pa.DataType) -> str | None:
    """The part of a type that has no JSON-like value, or None."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return _strange(kind.value_type)
    if types.is_struct(kind):
        return next((found for field in kind.fields if (found := _strange(field.type))), None)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _strange(kind.value_type)
    plain = (
        types.is_string,
        types.is_large_string,
        types.is_integer,
        types.is_floating,
        types.is_boolean,
        types.is_null,
    )
    return None if any(is_plain(kind) for is_plain in plain) else str(kind)


def _batches(path: Path, table: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[Iterable[Any]]:
    """Batches of rows; None stands for a row over the limit of one record."""
    import pyarrow as pa

    about = table.metadata.row_group(group)
    longest = max((about.column(index).total_uncompressed_size for index in range(about.num_columns)), default=0)
    rows = max(1, min(ROWS, ROOM // max(1, longest)))
    try:
        for batch in table.iter_batches(rows, row_groups=[group], columns=columns):
            yield batch.to_pylist() if batch.nbytes <= LINE_LIMIT else _short_rows(batch)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        column = next((name for name in columns if not _readable(table, group, name)), None)
        what = f"row group {group}{f', column {column!r}' if column else ''} cannot be read: {_short(error)}"
        raise _damaged(path, what, column) from error


def _short_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | None]:
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        (value,) = row.to_pylist()
        yield value if row.nbytes <= LINE_LIMIT or _length(value) <= LINE_LIMIT else None


def _length(value: object) -> int:
    """Bytes of the texts in a value, and one for everything else."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    if isinstance(value, dict):
        return sum(map(_length, value.values()))
    return sum(map(_length, value)) if isinstance(value, list) else 1


def _readable(table: pq.ParquetFile, group: int, column: str) -> bool:
    import pyarrow as pa

    try:
        table.read_row_group(group, columns=[column]).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return False
    return True


def _damaged(path: Path, message: str, column: str | None = None) -> DataError:
    where = Where(str(path), 1, field=column)
    return DataError("E043", message, where=where, fixes=["download it again and compare its size or checksum"])


def _short(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:160]
