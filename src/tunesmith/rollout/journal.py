"""A file of rows that grows while costly work goes on, so that a kill loses at most the row being written."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tunesmith.errors import UsageError, Where
from tunesmith.track.files import disk_error
from tunesmith.track.metrics import JsonLines
from tunesmith.track.reader import Row, read_lines


class Journal:
    """One writer at a time (UsageError E261); `rows` are those of earlier attempts, torn ones left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._held = path.open("ab")
        except OSError as error:
            raise disk_error(error, path) from error
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._held.close()
            message = f"another process is writing {path.name}"
            raise UsageError("E261", message, where=Where(str(path)), fixes=["wait for it, or stop it"]) from error
        self.rows: list[Row] = list(read_lines(path))
        self._lines = JsonLines(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._held.close()

    def end(self) -> None:
        """Close it; a file that holds nothing goes."""
        self.__exit__(None, None, None)
        if self.path.exists() and self.path.stat().st_size == 0:
            self.path.unlink()

    def write(self, row: Mapping[str, Any], *, sync: bool = False) -> None:
        """Append one row; with `sync` it survives a power cut."""
        self._lines.write(row)
        if sync:
            self._lines.sync()

    def offset(self) -> int:
        return self._lines.offset()

    def cut(self, begin: int, end: int) -> None:
        """Forget the rows between two offsets."""
        try:
            with self.path.open("r+b") as file:
                file.seek(end)
                behind = file.read()
                file.seek(begin)
                file.write(behind)
                file.truncate()
        except OSError as error:
            raise disk_error(error, self.path) from error
        self._lines.sync()
