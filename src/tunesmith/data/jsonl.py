"""Strict JSON, one object a line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.data.content import read_lines, too_long
from tunesmith.data.encoding import byte_fault
from tunesmith.data.json_faults import (
    MAX_DEPTH,
    Fault,
    depth_fault,
    depth_of,
    diagnostic,
    duplicate_fault,
    nul_in,
    number_fault,
    surrogate_fault,
    syntax_fault,
)
from tunesmith.data.tally import Tally
from tunesmith.errors import Diagnostic
from tunesmith.types import Record

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class _Duplicate(ValueError):
    """An object has a key twice."""


class _Number(ValueError):
    """A number that cannot be kept."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Duplicate
    return found


def _constant(name: str) -> float:
    raise _Number(name)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _Number(text)
    return value


STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite)
LENIENT = json.JSONDecoder(parse_int=str, parse_float=str)  # only finds where a refused object ends


def parse_strict(text: str) -> Any:
    """The value of a JSON text; ValueError or RecursionError where the strict rules of data files are broken."""
    check_depth(text)
    value = STRICT.decode(text)
    check_surrogates(text)
    return value


def check_depth(text: str) -> None:
    """RecursionError where brackets nest too deeply; counts exactly only where there are many."""
    if text.count("{") + text.count("[") > MAX_DEPTH and depth_of(text) > MAX_DEPTH:
        raise RecursionError


def check_surrogates(text: str) -> None:
    """ValueError where a string of a valid JSON text holds half of a surrogate pair."""
    if SURROGATE.search(text) and surrogate_fault(text):
        raise ValueError("half of a surrogate pair")


def fault_of(text: str, error: ValueError | RecursionError) -> Fault:
    """What made `parse_strict` refuse the text."""
    if isinstance(error, RecursionError):
        return depth_fault()
    if isinstance(error, json.JSONDecodeError):
        return syntax_fault(text, error)
    if isinstance(error, _Duplicate):
        return duplicate_fault(text)
    return surrogate_fault(text) or number_fault(text)


def read_jsonl(path: Path, tally: Tally) -> Iterator[Record]:
    """One record per non-blank line; bad lines go to `tally`."""
    file = str(path)
    for number, offset, line in read_lines(path, "jsonl"):
        if line is None:
            tally.refuse(too_long(path, number))
            continue
        if not line or line.isspace():
            continue
        try:
            value = parse_strict(line.decode())
        except (ValueError, RecursionError) as error:
            tally.refuse(_line_fault(path, number, offset, line, error))
            continue
        if type(value) is dict:
            yield Record(value, file, number)
        else:
            tally.refuse(not_an_object(path, value, number))


def _line_fault(path: Path, number: int, offset: int, line: bytes, error: ValueError | RecursionError) -> Diagnostic:
    if isinstance(error, UnicodeDecodeError):
        return byte_fault(path, number, offset, line, error)
    text = line.decode()
    return nul_in(path, line, number, offset) or diagnostic(path, text, fault_of(text, error), number)


def not_an_object(path: Path, value: Any, line: int) -> Diagnostic:
    """A record that is a list, a text, a number or null (E034)."""
    names = {list: "a list", str: "a text", bool: "a truth value", int: "a number", float: "a number"}
    name = names.get(type(value), "null")
    is_list_file = isinstance(value, list) and path.suffix != ".json"
    fix = "if the whole file is one list, name it .json" if is_list_file else "write one object per record"
    fault = Fault("E034", f'line {line:,} is {name}; want an object such as {{"messages": [...]}}', 0, fix=fix)
    return diagnostic(path, json.dumps(value)[:60], fault, line)
