"""Readers of a run's JSON lines: torn lines are skipped, and what a resume wrote anew replaces what was there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.errors import BadInput, Where
from tunesmith.regular import NotRegular, open_regular

Row = dict[str, Any]

RESUME = "resume"
LONGEST = 16_000_000  # bytes of a line; a longer one is no row
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_BASE = frozenset({"step", "tokens", "wall", "attempt", "event"})


def parse(line: bytes) -> Row | None:
    """The object in a line, or None for a torn one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def read_lines(path: Path) -> Iterator[Row]:
    """Every whole row of a file, in order, with the rows that a resume replaced; nothing when there is no file."""
    try:
        file = open_rows(path)
    except FileNotFoundError:
        return
    with file:
        for _, row in _parts(file):
            if row is not None:
                yield row


def open_rows(path: Path) -> BinaryIO:
    """BadInput E193 for what is no regular file: a pipe would wait for ever, a device has no end."""
    try:
        return open_regular(path)
    except NotRegular as error:
        raise BadInput("E193", f"{path.name} cannot be read: {error.strerror}", where=Where(str(path))) from error


def _parts(file: BinaryIO) -> Iterator[tuple[bytes, Row | None]]:
    """Every line with its row. One that is too long comes in parts, and none of them has a row."""
    torn = False
    while part := file.readline(LONGEST):
        ends = part.endswith(b"\n")
        yield part, None if torn or (len(part) == LONGEST and not ends) else parse(part)
        torn = not ends


def current(rows: Iterable[Row]) -> list[Row]:
    """The rows that hold: those of earlier attempts with step >= k go when an attempt begins at step k.

    A later attempt whose resume row is lost begins at its first row. Resume rows themselves are left out.
    """
    held: list[Row] = []
    attempt = 0
    for row in rows:
        step, number = row.get("step"), row.get("attempt", attempt)
        if not isinstance(step, int) or not isinstance(number, int):
            continue
        is_mark = row.get("event") == RESUME
        if number > attempt or is_mark:
            if attempt:
                held = [other for other in held if other["step"] < step]
            attempt = max(attempt, number)
        if not is_mark:
            held.append(row)
    return held


def read_metrics(path: Path) -> list[Row]:
    """The metrics rows that hold, in the order written; one step may have several (training, evaluation)."""
    return current(read_lines(path))


def number(value: Any) -> float | None:
    """A metric's value; the words for NaN and infinities become numbers again."""
    if isinstance(value, str):
        return _WORDS.get(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def series(rows: Iterable[Row], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric."""
    found = [(row["step"], number(row.get(name))) for row in rows]
    held = [(step, value) for step, value in found if value is not None]
    return [step for step, _ in held], [value for _, value in held]


def latest(rows: Iterable[Row]) -> dict[str, float]:
    """The last value of every metric."""
    found: dict[str, float] = {}
    for row in rows:
        for name, content in row.items():
            value = None if name in _BASE else number(content)
            if value is not None:
                found[name] = value
    return found


def read_from(path: Path, offset: int) -> tuple[list[Row], int]:
    """Rows after a byte offset and the next offset; a line without its end is left for the next call."""
    try:
        file = open_rows(path)
    except FileNotFoundError:
        return [], offset
    rows: list[Row] = []
    with file:
        file.seek(offset)
        for part, row in _parts(file):
            if not part.endswith(b"\n") and len(part) < LONGEST:
                break
            offset += len(part)
            if row is not None:
                rows.append(row)
    return rows, offset


def last_rows(path: Path, size: int = 16_384) -> list[Row]:
    """The rows in the last `size` bytes of a file, without reading the rest."""
    try:
        with open_rows(path) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - size))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    return [row for line in lines[end > size :] if (row := parse(line)) is not None]
