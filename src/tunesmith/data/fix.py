"""A repaired copy of a data file: what can be mended without guessing, and a list of the lines that cannot."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.config import SourceConfig
from tunesmith.data.content import BLOCK, BOM, LINE_LIMIT, Kind, kind_of, read_lines, too_long
from tunesmith.data.conversion import undecided
from tunesmith.data.encoding import byte_fault, wide_encoding
from tunesmith.data.fields import Fields
from tunesmith.data.formats import convert, form_of, recognise
from tunesmith.data.json_faults import diagnostic
from tunesmith.data.jsonl import STRICT, fault_of, not_an_object, parse_strict
from tunesmith.errors import DataError, Diagnostic, Fix, UsageError, Where
from tunesmith.types import Pair, Ranking, Record

PIECE = re.compile(
    r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?'
    r"|'[^'\\]*+(?:\\.[^'\\]*+)*+'?"
    r"|//[^\n]*+|\#[^\n]*+|/\*(?:[^*]|\*(?!/))*+(?:\*/)?"
    r"|\s++|[{}\[\],:]|[^\s{}\[\],:\"'/#]++|.",
    re.DOTALL,
)
SPACE = re.compile(r"[\s,]*")
WORDS = {"True": "true", "False": "false", "None": "null"}


@dataclass(frozen=True, slots=True)
class FixReport:
    """What was mended, by kind; `unfixable` lines are not in the copy."""

    source: str
    out: str
    lines: int
    fixed: dict[str, int]
    unfixable: tuple[Diagnostic, ...]


def fixed_name(path: Path) -> Path:
    """The usual name of the repaired copy: `data.fixed.jsonl` beside `data.jsonl`."""
    stem = path.name.split(".")[0]
    suffixes = path.name[len(stem) :].removesuffix(".gz")
    return path.with_name(f"{stem}.fixed{suffixes}")


def fix_file(src: Path, out: Path, *, drop_identical: bool = False) -> FixReport:
    """Write a repaired copy of a jsonl, json, csv, tsv or txt file; the source is never changed, nor an existing file.

    Mends UTF-16, byte order marks and CRLF, and in JSON also comments, single quotes, commas too many, Python's
    True/False/None and several objects on one line. What would need a guess (a cut line, a duplicate key) is listed.
    With `drop_identical` records whose answers do not differ are left out (of jsonl, where a line is a record).
    """
    kind = kind_of(src)
    if kind in (None, "parquet"):
        raise DataError("E040", "only jsonl, json, csv, tsv and txt can be repaired", where=Where(str(src), 1))
    if drop_identical and kind != "jsonl":
        raise UsageError(
            "E221",
            "--drop-identical works on jsonl files, where a line is a record",
            where=Where(str(src)),
            fixes=[Fix("convert it; equal answers are left out", command=f"tunesmith data convert {src} --to pairs")],
        )
    if out.exists():
        raise UsageError("E053", "the file to write exists already", where=Where(str(out)), fixes=["give another name"])
    repair = _Repair(src, kind, drop_identical)
    stage = out.with_name(f".{out.name}.tmp")
    try:
        with stage.open("w", encoding="utf-8", newline="\n") as file:
            for line in repair.lines():
                file.write(line + "\n")
        os.replace(stage, out)
    finally:
        stage.unlink(missing_ok=True)
    return FixReport(str(src), str(out), repair.count, dict(repair.fixed), tuple(repair.unfixable))


class _Repair:
    def __init__(self, path: Path, kind: Kind, drop_identical: bool) -> None:
        self.path = path
        self.kind = kind
        self.drop_identical = drop_identical
        self.count = 0
        self.fixed: Counter[str] = Counter()
        self.unfixable: list[Diagnostic] = []

    def lines(self) -> Iterator[str]:
        """The lines of the copy."""
        texts = self._texts()
        if self.kind in ("csv", "tsv", "txt"):
            for _, text in texts:
                yield text
        elif self.kind == "json":
            whole = "\n".join(text for _, text in texts)
            yield from self._mended(1, whole)
        else:
            for number, text in texts:
                if text.strip():
                    yield from filter(self._differs, self._mended(number, text))

    def _differs(self, text: str) -> bool:
        """Whether a record is kept: not when its answers are equal and those are to be dropped."""
        if not self.drop_identical or not is_identical(parse_strict(text)):
            return True
        self.fixed["records with equal answers left out"] += 1
        return False

    def _texts(self) -> Iterator[tuple[int, str]]:
        """Numbered lines as text, without byte order marks and CRs."""
        for number, raw in self._raw_lines():
            self.count = number
            text = raw.removesuffix("\r")
            if text != raw:
                self.fixed["CRLF line ends"] += 1
            if text.startswith("\ufeff"):
                self.fixed["byte order marks"] += 1
                text = text.lstrip("\ufeff")
            yield number, text

    def _raw_lines(self) -> Iterator[tuple[int, str]]:
        head = self._head()
        encoding = wide_encoding(head)
        if encoding is not None:
            self.fixed[f"{encoding} text"] += 1
            with self.path.open(encoding=encoding.lower(), errors="strict", newline="\n") as file:
                try:
                    for number, line in enumerate(file, 1):
                        yield number, line.removesuffix("\n")
                except UnicodeError as error:
                    self._give_up(self.count + 1, "E037", f"not {encoding}: {error}")
            return
        if head.startswith(BOM):
            self.fixed["byte order marks"] += 1
        for number, offset, content in read_lines(self.path, "txt"):
            if content is None:
                self.unfixable.append(too_long(self.path, number))
                continue
            try:
                yield number, content.decode()
            except UnicodeDecodeError as error:
                self.unfixable.append(byte_fault(self.path, number, offset, content, error))

    def _head(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                return file.read(min(BLOCK, LINE_LIMIT))
        except OSError as error:
            raise DataError("E041", f"cannot be read: {error.strerror}", where=Where(str(self.path), 1)) from error

    def _mended(self, number: int, text: str) -> Iterator[str]:
        """The JSON values of a text, each as one line; nothing when it cannot be mended."""
        try:
            value = parse_strict(text)
        except (ValueError, RecursionError) as error:
            mended, fixed = mend(text)
            if not mended.strip():
                self.fixed.update(fixed)
                return
            values = _values(mended)
            if values is None:
                self.unfixable.append(diagnostic(self.path, text, fault_of(text, error), number))
                return
            self.fixed.update(fixed)
            if len(values) > 1:
                self.fixed["objects put on lines of their own"] += len(values)
            yield from values
        else:
            if isinstance(value, dict if self.kind == "jsonl" else list | dict):
                yield text
            else:
                self.unfixable.append(not_an_object(self.path, value, number))

    def _give_up(self, number: int, code: str, message: str) -> None:
        fix = Fix("write the file again as UTF-8")
        self.unfixable.append(Diagnostic(code, message, where=Where(str(self.path), number), fixes=(fix,)))


def is_identical(value: dict[str, Any]) -> bool:
    """Whether a record is a pair of equal answers or a ranking that rates all alike; anything unreadable is not."""
    record = Record(value, "", 0)
    fields = Fields(record, {})
    for kind in ("pair", "ranking"):
        if form_of(fields, kind) is None:
            continue
        try:
            entry = convert(record, recognise(record, SourceConfig(path=""), kind), {}, kind)
        except DataError:
            return False
        return isinstance(entry, Pair | Ranking) and undecided(entry)
    return False


def mend(text: str) -> tuple[str, Counter[str]]:
    """JSON text without comments, single quotes, commas too many and Python words, and how often each was mended."""
    fixed: Counter[str] = Counter()
    pieces: list[str] = []
    for match in PIECE.finditer(text):
        piece = match[0]
        if piece.startswith(("//", "#", "/*")):
            fixed["comments"] += 1
            continue
        if piece[0] == "'" and len(piece) > 1:
            fixed["single quotes"] += 1
            piece = _double_quoted(piece)
        elif piece in WORDS:
            fixed["Python words"] += 1
            piece = WORDS[piece]
        elif piece in ("}", "]"):
            _drop_comma(pieces, fixed)
        pieces.append(piece)
    if text.lstrip()[:1] in ("{", ","):
        _drop_comma(pieces, fixed)
    return "".join(pieces), fixed


def _double_quoted(piece: str) -> str:
    inner = re.sub(
        r"\\.|\"", lambda found: {"\\'": "'", '"': '\\"'}.get(found[0], found[0]), piece[1:-1], flags=re.DOTALL
    )
    return f'"{inner}"'


def _drop_comma(pieces: list[str], fixed: Counter[str]) -> None:
    for index in range(len(pieces) - 1, -1, -1):
        if pieces[index] == ",":
            del pieces[index]
            fixed["commas too many"] += 1
        if index >= len(pieces) or not pieces[index].isspace():
            return


def _values(text: str) -> list[str] | None:
    """The texts of the JSON values that stand one after another, or None when one breaks the rules."""
    found: list[str] = []
    position = 0
    while (space := SPACE.match(text, position)) and space.end() < len(text):
        try:
            _, end = STRICT.raw_decode(text, space.end())
            parse_strict(text[space.end() : end])
        except (ValueError, RecursionError):
            return None
        found.append(text[space.end() : end])
        position = end
    return found
