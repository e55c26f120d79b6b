"""Which rows of the fault table a test is of, and what it found out about them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TABLE = yaml.safe_load((Path(__file__).parent / "fault_rows.yaml").read_text(encoding="utf-8"))
ROWS: dict[str, str] = TABLE["rows"]
NOT_COVERED: dict[str, str] = TABLE["not_covered"]
VARIABLE = "TUNESMITH_EVIDENCE"


def rows_of_name(name: str) -> list[str]:
    """`test_r06_r07_damage` is of R6 and R7."""
    found = re.match(r"test_((?:[a-z]\d{1,2}_)+)", name)
    named = [f"{part[0].upper()}{int(part[1:])}" for part in found[1].rstrip("_").split("_")] if found else []
    return [row for row in named if row in ROWS]


def order(row: str) -> tuple[int, int]:
    """Rows in the order of the table: by section, then by number."""
    return "RPNDKFXWSZ".index(row[0]), int(row[1:])


def check(rows: Iterable[str]) -> None:
    """ValueError for a row that the table does not have."""
    unknown = [row for row in rows if row not in ROWS]
    if unknown:
        raise ValueError(f"no rows of the fault table (tests/fault_rows.yaml): {' '.join(unknown)}")


def write(entry: dict[str, Any]) -> None:
    """Append a line of JSON to the file that TUNESMITH_EVIDENCE names, if it names one."""
    file = os.environ.get(VARIABLE)
    if file:
        line = json.dumps(entry, ensure_ascii=False) + "\n"
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(descriptor, line.encode())  # in one piece: other processes append as well
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Tested:
    """A test, the rows it is of, and whether it needs `-m nightly`."""

    test: str
    rows: tuple[str, ...]
    nightly: bool = False

    def publish(self, *of: str, claim: str, figure: Any, seed: int | None = None) -> None:
        """Put a figure on the page of `make torture`."""
        check(of)
        assert of, "a figure belongs to a row"
        assert set(of) <= set(self.rows), f"the test is of {self.rows}, the figure of {of}"
        self._write({"kind": "figure", "rows": of, "claim": claim, "figure": str(figure), "seed": seed})

    def ended(self, outcome: str, reason: str) -> None:
        self._write({"kind": "outcome", "rows": self.rows, "outcome": outcome, "reason": reason})

    def _write(self, entry: dict[str, Any]) -> None:
        write({**entry, "test": self.test, "nightly": self.nightly})
