"""What is wrong with a JSON text that was refused: the rule, line, column and field. Runs only after a failure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tunesmith.data.encoding import nul_fault, printable, quoted
from tunesmith.errors import Diagnostic, Fix, Where

MAX_DEPTH = 64
PATH_DEPTH = 16  # steps of a field path that are shown
TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[{}\[\],:]|[^\s{}\[\],:"]++', re.DOTALL)
STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
ESCAPE = re.compile(r"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u[dD][89a-fA-F]..)")  # group 1: without its other half
BRACKET = re.compile(r"[{}\[\]]")
NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?\Z")
DIGITS = 4300  # the longest integer that Python reads by default


class Token(NamedTuple):
    start: int
    text: str
    field: str  # dotted path of the value it belongs to
    is_key: bool


@dataclass(slots=True)
class _Frame:
    """An open object or list: the present key or index, and whether a key comes next."""

    place: str | int
    wants_key: bool


class Fault(NamedTuple):
    """A fault inside one JSON text; `position` counts characters from 0."""

    code: str
    message: str
    position: int
    field: str | None = None
    evidence: tuple[str, ...] = ()
    fix: str | None = None
    can_repair: bool = False


def outline(text: str) -> Iterator[Token]:
    """The tokens of a JSON text with their paths; tolerant, since the text may be broken."""
    stack: list[_Frame] = []
    for match in TOKEN.finditer(text):
        start, piece = match.start(), match[0]
        here = stack[-1] if stack else None
        if piece in ("{", "["):
            yield Token(start, piece, _path(stack), False)
            stack.append(_Frame("", True) if piece == "{" else _Frame(0, False))
        elif piece in ("}", "]"):
            if stack:
                stack.pop()
            yield Token(start, piece, _path(stack), False)
        elif piece == ",":
            if here is not None and isinstance(here.place, int):
                here.place += 1
            elif here is not None:
                here.place, here.wants_key = "", True
        elif here is not None and here.wants_key:
            here.place, here.wants_key = piece.strip('"'), False
            yield Token(start, piece, _path(stack), True)
        elif piece != ":":
            yield Token(start, piece, _path(stack), False)


def _path(stack: list[_Frame]) -> str:
    places = (frame.place for frame in stack[:PATH_DEPTH])
    path = "".join(f"[{place}]" if isinstance(place, int) else f".{place}" for place in places)
    return path.removeprefix(".")


def diagnostic(path: Path, text: str, fault: Fault, line: int = 1, column: int = 1) -> Diagnostic:
    """The fault as told to the user; `line` and `column` are where the text begins in its file."""
    before = text[: fault.position]
    breaks = before.count("\n")
    here = fault.position - before.rfind("\n") - 1
    fixes = [Fix(fault.fix)] if fault.fix else []
    if fault.can_repair:
        fixes.append(Fix("make a repaired copy", command=f"tunesmith data fix {quoted(path)}"))
    return Diagnostic(
        fault.code,
        fault.message,
        where=Where(str(path), line + breaks, (column if not breaks else 1) + here, fault.field or None),
        evidence=(*fault.evidence, *_excerpt(text, fault.position)),
        fixes=tuple(fixes),
    )


def _excerpt(text: str, position: int) -> tuple[str, str]:
    start = max(0, position - 20)
    return printable(text[start : position + 20]), " " * (position - start) + "^"


def nul_in(path: Path, line: bytes, number: int, offset: int) -> Diagnostic | None:
    """A raw NUL byte in the line, if there is one."""
    at = line.find(b"\0")
    if at < 0:
        return None
    return nul_fault(path, number, offset + at, len(line[:at].decode("utf-8", "replace")) + 1)


def syntax_fault(text: str, error: json.JSONDecodeError) -> Fault:
    """The broken rule behind an error of the json module."""
    at = error.pos
    rest = text[at:]
    field = _field_at(text, at)
    if error.msg == "Extra data":
        return _after_object(text, at)
    if error.msg.startswith("Unterminated string") or not rest.strip():
        return Fault(
            "E030",
            "the JSON ends in the middle",
            len(text.rstrip()),
            field,
            fix="did the download finish? In jsonl every object stands on one line",
        )
    if rest[0] == "," or (rest[0] in "}]" and text[:at].rstrip().endswith(",")):
        comma = at if rest[0] == "," else text[:at].rstrip().rfind(",")
        return Fault(
            "E030", "a comma with nothing after it: JSON allows none before } or ]", comma, field, can_repair=True
        )
    if rest[0] == "'":
        return Fault("E030", "single quotes: JSON wants double quotes", at, field, can_repair=True)
    if rest.startswith(("//", "/*", "#")):
        return Fault("E030", "a comment: JSON has none", at, field, can_repair=True)
    if rest[0] == "\ufeff":
        return Fault("E030", "a byte order mark in the middle of the file", at, field, can_repair=True)
    if word := re.match(r"(True|False|None|undefined)\b", rest):
        return Fault("E030", f"{word[0]} is not JSON: it writes true, false and null", at, field, can_repair=True)
    if error.msg.startswith("Invalid control character"):
        name = {"\n": "line break", "\t": "tab"}.get(text[at], f"control character U+{ord(text[at]):04X}")
        return Fault(
            "E030", f"a raw {name} inside a string: JSON writes it escaped", at, field, fix="escape it, as \\n or \\t"
        )
    return Fault("E030", f"not JSON: {error.msg[0].lower()}{error.msg[1:]}", at, field)


def _field_at(text: str, position: int) -> str:
    field = ""
    for token in outline(text):
        if token.start > position:
            break
        field = token.field
    return field


def _after_object(text: str, at: int) -> Fault:
    """Something follows a complete value on its line."""
    if text[at] == "," and not text[at + 1 :].strip():
        return Fault(
            "E030", "a comma after the object: in jsonl a line is one object and nothing else", at, can_repair=True
        )
    count, decoder = 1, json.JSONDecoder()
    position = at
    while position < len(text):
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            break
        if not isinstance(value, dict):
            break
        count += 1
        position += len(text[position:]) - len(text[position:].lstrip(" \t\r,"))
    if count > 1:
        return Fault("E033", f"{count} objects on one line; one per line", at, can_repair=True)
    return Fault("E030", "something follows the object on its line", at)


def duplicate_fault(text: str) -> Fault:
    """The first key that an object has twice."""
    seen: dict[str, int] = {}
    openings: list[int] = []
    for token in outline(text):
        if token.text == "{":
            openings.append(token.start)
        elif token.text == "}" and openings:
            openings.pop()
        if not token.is_key or not openings:
            continue
        name = f"{openings[-1]} {_decoded(token.text)}"
        if name in seen:
            return Fault(
                "E035",
                f"the key {token.text} stands twice in one object, at columns {seen[name] + 1} and {token.start + 1}",
                token.start,
                token.field,
                fix="keep one: which of the two is meant cannot be known",
            )
        seen[name] = token.start
    return Fault("E035", "a key stands twice in one object", 0)


def _decoded(token: str) -> str:
    try:
        return json.loads(token)
    except ValueError:
        return token


def number_fault(text: str) -> Fault:
    """The first number that Python cannot keep: NaN, infinite, or with thousands of digits."""
    for token in outline(text):
        if token.is_key or token.text[0] == '"':
            continue
        what = None
        if token.text in ("NaN", "Infinity", "-Infinity"):
            what = f"{token.text} is not a number that JSON knows"
        elif NUMBER.match(token.text):
            is_float = any(mark in token.text for mark in ".eE")
            if is_float and math.isinf(float(token.text)):
                what = f"{token.text[:20]} is too large for a number: it would become infinity"
            elif not is_float and len(token.text.lstrip("-")) > DIGITS:
                what = f"a whole number of {len(token.text.lstrip('-')):,} digits"
        if what:
            return Fault("E036", what, token.start, token.field, fix="write null, a finite number, or a quoted text")
    return Fault("E036", "a number that cannot be kept", 0)


def surrogate_fault(text: str) -> Fault | None:
    """The first string that holds half of a surrogate pair, which no encoding can write."""
    for token in outline(text):
        if token.text[0] != '"' or "\\u" not in token.text:
            continue
        value = _decoded(token.text)
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(value[error.start]):04x}"
            lone = next((found.start() for found in ESCAPE.finditer(token.text) if found[1]), 0)
            return Fault(
                "E038",
                f"{half} is half of a surrogate pair: a character cut in two",
                token.start + lone,
                token.field,
                fix="a text was cut in the middle of an emoji: cut it elsewhere",
            )
    return None


def depth_of(text: str) -> int:
    """How deeply brackets are nested, those inside strings not counted."""
    depth = deepest = 0
    for bracket in BRACKET.findall(STRING.sub("", text)):
        if bracket in "{[":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


def depth_fault() -> Fault:
    return Fault("E039", f"nested deeper than {MAX_DEPTH} levels", 0, fix="flatten the record")
