"""One pass over data files: what was read, what was refused or skipped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from tunesmith.errors import DataError, Diagnostic, Fix, Where

OnBad = Literal["error", "skip"]

MAX_FAULTS = 50
SHOWN_LINES = 5

REASONS = {
    "E030": "broken JSON",
    "E033": "several objects on one line",
    "E034": "not an object",
    "E035": "duplicate key",
    "E036": "number that cannot be kept",
    "E037": "not UTF-8",
    "E038": "NUL or half a surrogate pair",
    "E039": "too long or too deep",
    "E044": "broken CSV row",
    "E047": "unknown shape",
    "E048": "missing or wrong field",
    "E049": "unknown role",
    "E050": "empty turn or no assistant turn",
    "E051": "roles out of order",
    "E210": "records for another objective",
    "E211": "answers to different prompts",
    "E212": "prompts that the template writes apart",
    "E213": "label or score that cannot be read",
    "E214": "too few or too many answers, scores or labels",
    "E218": "unknown class",
    "E219": "answers that the template rewrites",
    "E220": "weights in judged answers",
    "E222": "no transcript",
    "E223": "steps that share a token",
}


def data_error(diagnostic: Diagnostic, others: Iterable[Diagnostic] = ()) -> DataError:
    """The diagnostic as an error that can be raised."""
    return DataError(
        diagnostic.code,
        diagnostic.message,
        where=diagnostic.where,
        evidence=diagnostic.evidence,
        fixes=diagnostic.fixes,
        others=others,
    )


@dataclass(slots=True)
class _Group:
    """Faults that are alike: the first, how many there are, and where the first few stand."""

    first: Diagnostic
    count: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, diagnostic: Diagnostic) -> None:
        self.count += 1
        if len(self.lines) < SHOWN_LINES and diagnostic.where is not None and diagnostic.where.line is not None:
            self.lines.append(diagnostic.where.line)

    def told(self, records: int) -> Diagnostic:
        if self.count == 1:
            return self.first
        lines = ", ".join(str(line) for line in self.lines)
        more = " ..." if self.count > len(self.lines) else ""
        total = f"{self.count:,} of {records:,} records" if records else f"{self.count:,} times"
        return replace(self.first, evidence=(*self.first.evidence, f"{total} (lines {lines}{more})"))


class Tally:
    """Counts of one pass over data files; give one to the readers to learn what `on_bad="skip"` skipped.

    `records` counts parsed records, also those whose shape is wrong; `skipped` counts bad ones by reason and `places`
    holds the first five `file:line` of each reason.
    With `on_bad="error"` faults are kept until the file ends (or 50 came together), then raised as one DataError.
    """

    def __init__(self, on_bad: OnBad = "error") -> None:
        self.on_bad: OnBad = on_bad
        self.records = 0
        self.skipped: Counter[str] = Counter()
        self.places: dict[str, list[str]] = {}
        self._warnings: dict[str, _Group] = {}
        self._faults: dict[str, _Group] = {}
        self._single = 0
        self._file_start = 0

    @property
    def failing(self) -> bool:
        """Whether a fault was found in the present file that will be raised at its end."""
        return bool(self._faults)

    @property
    def warnings(self) -> tuple[Diagnostic, ...]:
        return tuple(group.told(0) for group in self._warnings.values())

    def warn(self, diagnostic: Diagnostic) -> None:
        """Keep a warning; those of one code and file are told as one with a count."""
        file = diagnostic.where.file if diagnostic.where is not None else None
        self._warnings.setdefault(f"{diagnostic.code} {file}", _Group(diagnostic)).add(diagnostic)

    def refuse(self, diagnostic: Diagnostic, alike: str | None = None) -> None:
        """Count a bad record. Faults with the same `alike` are told as one, with how many and where."""
        if self.on_bad == "skip":
            self._skip(diagnostic)
            return
        if alike is None:
            self._single += 1
            alike = f"#{self._single}"
        if alike in self._faults or len(self._faults) < MAX_FAULTS:
            self._faults.setdefault(alike, _Group(diagnostic)).add(diagnostic)
        if self._single >= MAX_FAULTS:
            raise self._error()

    def start_file(self) -> None:
        self._faults.clear()
        self._single = 0
        self._file_start = self.records + self.skipped.total()

    def end_file(self, file: str) -> None:
        """Raise what was kept; a file without any record is an error as well (E042)."""
        if self._faults:
            raise self._error()
        if self.records + self.skipped.total() == self._file_start:
            raise DataError(
                "E042",
                "0 records: the file is empty or holds only blank lines",
                where=Where(file, 1),
                fixes=["check that the file was written or downloaded completely", "leave it out of data.train"],
            )

    def add_kept(self, error: DataError) -> None:
        """Hand the faults kept so far to an error that ended the file early."""
        error.others = (*error.others, *self._kept())

    def _kept(self) -> list[Diagnostic]:
        records = self.records - self._file_start
        told = [group.told(records) for group in self._faults.values()]
        self._faults.clear()
        return told

    def _error(self) -> DataError:
        first, *others = self._kept()
        skip = Fix("leave out such records and count them: data.on_bad=skip", set={"data.on_bad": "skip"})
        return data_error(replace(first, fixes=(*first.fixes, skip)), others)

    def _skip(self, diagnostic: Diagnostic) -> None:
        reason = REASONS.get(diagnostic.code, diagnostic.code)
        self.skipped[reason] += 1
        places = self.places.setdefault(reason, [])
        if len(places) < SHOWN_LINES and diagnostic.where is not None:
            places.append(f"{diagnostic.where.file}:{diagnostic.where.line}")
