"""The append-only writer of JSON lines: a line is whole or visibly torn, and a torn one is healed by the next."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.controls import visible
from tunesmith.faults import fault
from tunesmith.redaction import redacted
from tunesmith.regular import open_regular
from tunesmith.track.files import disk_error, to_json


class JsonLines:
    """One file, one writer; a line reaches the kernel when `write` returns and the disk when `sync` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._torn = path.exists() and _ends_torn(path)  # first, for opening a pipe would wait for its reader
            self._file = path.open("ab", buffering=0)
            self._heal()
        except OSError as error:
            raise disk_error(error, path) from error

    def write(self, row: Mapping[str, Any], step: int | None = None) -> None:
        """Append one row; MachineError E194 when the disk refuses. Non-finite numbers are written as words."""
        self._append(redacted(to_json(row)), step)

    def write_text(self, line: str) -> None:
        """Append a line of plain text, for the log."""
        self._append(visible(redacted(line)).replace("\n", "\n    "), None)

    def _append(self, text: str, step: int | None) -> None:
        line = text.encode("utf-8", errors="replace") + b"\n"
        try:
            fault("log.before_write", step, self.path)
            self._heal()
            self._torn = True
            self._write_all(line)
            self._torn = False
            fault("log.after_write", step, self.path)
        except OSError as error:
            raise disk_error(error, self.path) from error

    def sync(self, step: int | None = None) -> None:
        """Make everything so far survive a power cut."""
        try:
            fault("log.before_flush", step, self.path)
            os.fsync(self._file.fileno())
            fault("log.after_flush", step, self.path)
        except OSError as error:
            raise disk_error(error, self.path) from error

    def offset(self) -> int:
        """Bytes written so far."""
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()

    def _heal(self) -> None:
        if self._torn:
            self._write_all(b"\n")
            self._torn = False

    def _write_all(self, content: bytes) -> None:
        rest = memoryview(content)
        while len(rest):
            rest = rest[self._file.write(rest) :]


def _ends_torn(path: Path) -> bool:
    with open_regular(path) as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
