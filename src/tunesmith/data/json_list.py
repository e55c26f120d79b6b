"""A JSON list of objects, read as a stream: the objects one by one, each with the line where it begins."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.data.content import BLOCK, LINE_LIMIT, broken_gzip, read_blocks, too_long
from tunesmith.data.encoding import byte_fault, nul_fault
from tunesmith.data.json_faults import Fault, diagnostic
from tunesmith.data.jsonl import LENIENT, STRICT, check_depth, check_surrogates, fault_of, not_an_object, read_jsonl
from tunesmith.data.tally import Tally, data_error
from tunesmith.errors import DataError
from tunesmith.types import Record

SPACE = re.compile(r"[ \t\r\n]*")
LONGEST_WORD = 16  # characters of "-Infinity" or an escape, which may be cut at the end of a block


def read_json(path: Path, tally: Tally) -> Iterator[Record]:
    """The objects of a JSON list; a file whose first line is an object is read as one object a line.

    A broken list ends the tally, since nothing says where its next object begins.
    """
    window = _Window(path)
    try:
        first = window.peek()
        if first == "{":
            _check_one_per_line(window)
            yield from read_jsonl(path, tally)
        elif first == "[":
            yield from _elements(window, tally)
        elif first:
            raise window.error("E034", f"the file begins with {first!r}; want a list of objects: [{{...}}, ...]")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise broken_gzip(path, error, window.line, window.offset(window.position)) from error


def _elements(window: _Window, tally: Tally) -> Iterator[Record]:
    window.skip(1)
    if window.peek() != "]":
        while True:
            record = _element(window, tally)
            if record is not None:
                yield record
            mark = window.peek()
            if mark == "]":
                break
            if not mark:
                raise window.error("E030", "the file ends before the list does", "did the download finish?")
            if mark != ",":
                raise window.error("E030", f"{mark!r} follows an object of the list; want a comma or ]")
            window.skip(1)
            if window.peek() == "]":
                raise window.error("E030", "a comma with nothing after it: JSON allows none before ]", repair=True)
    window.skip(1)
    if window.peek():
        raise window.error("E030", "something follows the list")


def _check_one_per_line(window: _Window) -> None:
    try:
        _, end = window.decode(LENIENT)
    except (json.JSONDecodeError, RecursionError):
        return
    if "\n" in window.text[window.position : end]:
        message = "the file is one object over several lines; want a list of objects: [{...}, ...]"
        raise window.error("E034", message, "write the records as a list, or one object on each line")


def _element(window: _Window, tally: Tally) -> Record | None:
    """The next object of the list, or None when it was refused."""
    line, column = window.line, window.column
    refusal = value = None
    try:
        value, end = window.decode(STRICT)
        text = window.text[window.position : end]
        check_depth(text)
        check_surrogates(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise window.broken(error) from error
    except ValueError as error:
        refusal = error
        try:
            _, end = window.decode(LENIENT)
        except json.JSONDecodeError as second:
            raise window.broken(second) from second
        text = window.text[window.position : end]
    window.skip(len(text))
    if refusal is not None:
        tally.refuse(diagnostic(window.path, text, fault_of(text, refusal), line, column))
    elif type(value) is dict:
        return Record(value, str(window.path), line)
    else:
        tally.refuse(not_an_object(window.path, value, line))
    return None


class _Window:
    """The unread rest of a file as text that grows on demand; `line` and `column` are those of `position`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = ""
        self.position = 0
        self.line = self.column = 1
        self._blocks = read_blocks(path, "json")
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._read = 0
        self._ended = False

    def peek(self) -> str:
        """The next character that is not space, or "" at the end."""
        while True:
            match = SPACE.match(self.text, self.position)
            self.skip(match.end() - self.position if match else 0)
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.grow():
                return ""

    def skip(self, count: int) -> None:
        end = self.position + count
        breaks = self.text.count("\n", self.position, end)
        self.line += breaks
        self.column = end - self.text.rfind("\n", self.position, end) if breaks else self.column + count
        self.position = end

    def decode(self, decoder: json.JSONDecoder) -> tuple[Any, int]:
        """The value at `position` and its end; reads on while the value may only be cut off."""
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated") or error.pos > len(self.text) - LONGEST_WORD
                if unfinished and len(self.text) - self.position > LINE_LIMIT:
                    raise data_error(too_long(self.path, self.line)) from error
                if not unfinished or not self.grow():
                    raise
                continue
            if end < len(self.text) or not self.grow():
                return value, end

    def grow(self) -> bool:
        """Drop what was read and double the rest; False at the end of the file."""
        if self._ended:
            return False
        parts = [self.text[self.position :]]
        wanted = self._read + max(BLOCK, len(parts[0]))
        while self._read < wanted and not self._ended:
            block = next(self._blocks, b"")
            self._ended = not block
            try:
                parts.append(self._decoder.decode(block, final=self._ended))
            except UnicodeDecodeError as error:
                raise self._bad_byte("".join(parts), error) from error
            self._read += len(block)
        self.text, self.position = "".join(parts), 0
        return True

    def offset(self, position: int) -> int:
        """Bytes of unpacked text before a position of `text`."""
        pending = len(self._decoder.getstate()[0])
        return self._read - pending - len(self.text[position:].encode())

    def error(self, code: str, message: str, fix: str | None = None, *, repair: bool = False) -> DataError:
        """A fault at the present position that ends the tally."""
        rest = self.text[self.position : self.position + 40]
        fault = Fault(code, message, 0, fix=fix, can_repair=repair)
        return data_error(diagnostic(self.path, rest, fault, self.line, self.column))

    def broken(self, error: json.JSONDecodeError | RecursionError) -> DataError:
        """The syntax fault of the value at the present position."""
        rest = self.text[self.position : self.position + LINE_LIMIT]
        if isinstance(error, json.JSONDecodeError):
            at = error.pos - self.position
            if rest[at : at + 1] == "\0":
                line = self.line + rest.count("\n", 0, at)
                return data_error(nul_fault(self.path, line, self.offset(error.pos), at - rest.rfind("\n", 0, at)))
            error = json.JSONDecodeError(error.msg, rest, at)
        return data_error(diagnostic(self.path, rest, fault_of(rest, error), self.line, self.column))

    def _bad_byte(self, before: str, error: UnicodeDecodeError) -> DataError:
        content, start = error.object, error.start
        line = self.line + before.count("\n") + content.count(b"\n", 0, start)
        begin = content.rfind(b"\n", 0, start) + 1
        finish = content.find(b"\n", start)
        piece = content[begin : finish if finish >= 0 else None]
        offset = self._read - len(self._decoder.getstate()[0]) + begin
        shifted = UnicodeDecodeError(error.encoding, piece, start - begin, error.end - begin, error.reason)
        return data_error(byte_fault(self.path, line, offset, piece, shifted))
