"""A record seen through the column mapping: our names in, the file's names in errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.turns import describe, field_error, read_tools, read_turns
from tunesmith.errors import DataError, Fix
from tunesmith.types import Message, Record

Placed = list[tuple[str, Message]]  # turns with their places in the record, such as messages[2]


@dataclass(frozen=True, slots=True)
class Fields:
    record: Record
    columns: Mapping[str, str]

    def column(self, name: str) -> str:
        return self.columns.get(name, name)

    def has(self, name: str) -> bool:
        return self.column(name) in self.record.value

    def value(self, name: str) -> Any:
        return self.record.value.get(self.column(name))

    def first(self, names: Iterable[str]) -> str | None:
        """The first of several names of one thing that the record has."""
        return next((name for name in names if self.has(name)), None)

    def listed(self, names: Sequence[str], want: str) -> tuple[str, list[Any]]:
        """The list under the first of several names of one thing, with that name."""
        name = self.first(names) or names[0]
        value = self.value(name)
        if not isinstance(value, list):
            raise self.wrong(name, want)
        return name, value

    def error(self, name: str, message: str, code: str = "E048", fixes: Iterable[Fix | str] = ()) -> DataError:
        fixes = list(fixes)
        if code == "E048" and not self.has(name):
            fixes.append(f"the record has: {', '.join(map(str, self.record.value))[:200]}")
        return field_error(self.record, self.column(name), message, code, fixes)

    def wrong(self, name: str, want: str, code: str = "E048") -> DataError:
        """The error of a field that is missing or of another type than wanted."""
        got = "is missing" if not self.has(name) else f"is {describe(self.value(name))}"
        return self.error(name, f"{self.column(name)} {got}; want {want}", code)

    def text(self, name: str, *, needed: bool = True) -> str:
        value = self.value(name)
        if isinstance(value, str):
            return value
        if value is None and not needed:
            return ""
        raise self.wrong(name, "a text")

    def check_filled(self, name: str, text: str) -> None:
        if not text.strip():
            raise self.error(name, f"{self.column(name)} is empty", "E050")

    def turns(self, name: str) -> Placed:
        """A list of turns, or one turn as an object."""
        value = self.value(name)
        if not isinstance(value, list):
            raise self.wrong(name, "a list of turns")
        return self.placed(self.column(name), value)

    def placed(self, place: str, value: list[Any]) -> Placed:
        turns = read_turns(self.record, place, value, self.columns)
        return [(f"{place}[{index}]", turn) for index, turn in enumerate(turns)]

    def tools(self) -> tuple[dict[str, Any], ...]:
        return read_tools(self.record, self.column("tools"), self.value("tools"))

    def number(self, name: str) -> float | None:
        """A finite number, also as a text (the cells of a csv); None where the record says nothing."""
        value = self.value(name)
        if value is None or value == "":
            return None
        return number_of(self, self.column(name), value)


def number_of(fields: Fields, place: str, value: Any) -> float:
    """A finite number at a place in a record; E213 for anything else."""
    found = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            found = float(value)
        except (ValueError, OverflowError):
            found = math.nan
    if not math.isfinite(found):
        shown = repr(value)[:40] if isinstance(value, str | float) else describe(value)
        raise field_error(fields.record, place, f"{place} is {shown}; want a number", "E213")
    return found
