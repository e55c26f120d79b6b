"""Readers of a run's JSON lines: torn lines are skipped, and what a resume wrote anew replaces what was there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]

RESUME = "resume"
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
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            row = parse(line)
            if row is not None:
                yield row


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
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read()
    except FileNotFoundError:
        return [], offset
    whole = content[: content.rfind(b"\n") + 1]
    rows = [row for line in whole.splitlines() if (row := parse(line)) is not None]
    return rows, offset + len(whole)


def last_rows(path: Path, size: int = 16_384) -> list[Row]:
    """The rows in the last `size` bytes of a file, without reading the rest."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - size))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    return [row for line in lines[end > size :] if (row := parse(line)) is not None]
