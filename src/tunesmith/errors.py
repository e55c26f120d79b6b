"""The tree of errors: each says what, where and the fix, and knows its exit code.

TunesmithError            1   the run failed
├── UsageError            2   command line or recipe
├── DoesNotFit            3   the plan says no
├── BadInput              4   a file given by the user
│   ├── DataError
│   ├── ModelError
│   └── CheckpointError
├── MachineError          5   disk, memory, limits, port, missing package
├── NumericalError        6   non-finite or diverging numbers
├── RankDied              7
├── RankHung              8
├── Unsafe                9   refused for safety
├── Preempted            75   saved and resumable
└── Interrupted         130   saved and resumable
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

Level = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a user's file; line and column count from 1, `field` is a dotted path."""

    file: str | None = None
    line: int | None = None
    column: int | None = None
    field: str | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        return "  ".join(part for part in (place, self.field) if part)


@dataclass(frozen=True, slots=True)
class Fix:
    """One way out: a label, the recipe keys it would set, a command to paste, and what it costs."""

    label: str
    set: dict[str, Any] = field(default_factory=dict)
    command: str | None = None
    effect: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """An error or warning as an object; the command line, `--json` and the page show the same one."""

    code: str
    message: str
    level: Level = "error"
    where: Where | None = None
    evidence: tuple[str, ...] = ()
    fixes: tuple[Fix, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.level}[{self.code}]: {self.message}"]
        if self.where is not None and str(self.where):
            lines.append(f"  --> {self.where}")
        lines += [f"   |  {line}" for line in self.evidence]
        for index, fix in enumerate(self.fixes):
            label = "fix" if index == 0 else "or "
            text = fix.command or fix.label
            lines.append(f"  {label}: {text}" + (f"      ({fix.effect})" if fix.effect else ""))
        lines.append(f"  more: tunesmith explain {self.code}")
        return "\n".join(lines)


class TunesmithError(Exception):
    """The root: a failure with one diagnostic first and, where several were collected, the others after it."""

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        code: str,
        message: str,
        *,
        where: Where | None = None,
        evidence: Iterable[str] = (),
        fixes: Iterable[Fix | str] = (),
        others: Iterable[Diagnostic] = (),
    ) -> None:
        ways_out = tuple(Fix(label=fix) if isinstance(fix, str) else fix for fix in fixes)
        self.diagnostic = Diagnostic(code, message, "error", where, tuple(evidence), ways_out)
        self.others = tuple(others)
        super().__init__(str(self.diagnostic))

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        return (self.diagnostic, *self.others)

    def at(self, where: Where) -> TunesmithError:
        """Set the place of the first diagnostic, for a caller that knows it better."""
        self.diagnostic = replace(self.diagnostic, where=where)
        self.args = (str(self.diagnostic),)
        return self


class UsageError(TunesmithError):
    exit_code = 2


class DoesNotFit(TunesmithError):
    exit_code = 3


class BadInput(TunesmithError):
    exit_code = 4


class DataError(BadInput):
    pass


class ModelError(BadInput):
    pass


class CheckpointError(BadInput):
    pass


class MachineError(TunesmithError):
    exit_code = 5


class NumericalError(TunesmithError):
    exit_code = 6


class RankDied(TunesmithError):
    exit_code = 7


class RankHung(TunesmithError):
    exit_code = 8


class Unsafe(TunesmithError):
    exit_code = 9


class Preempted(TunesmithError):
    exit_code = 75


class Interrupted(TunesmithError):
    exit_code = 130


def restored(exit_code: int, diagnostics: Iterable[dict[str, Any]]) -> TunesmithError:
    """The error that another process told as its exit code and `Diagnostic.to_json` of each diagnostic."""
    first, *others = (_diagnostic(told) for told in diagnostics)
    error = kind_of(exit_code)(first.code, first.message, others=others)
    error.diagnostic = first
    error.args = (str(first),)
    return error


def kind_of(exit_code: int) -> type[TunesmithError]:
    """The class of this module with this exit code; the root for a code of none."""
    kinds = (kind for kind in TunesmithError.__subclasses__() if kind.__module__ == __name__)
    return next((kind for kind in kinds if kind.exit_code == exit_code), TunesmithError)


def _diagnostic(told: dict[str, Any]) -> Diagnostic:
    where = None if told["where"] is None else Where(**told["where"])
    fixes = tuple(Fix(**fix) for fix in told["fixes"])
    return Diagnostic(told["code"], told["message"], told["level"], where, tuple(told["evidence"]), fixes)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, or None when nothing is close."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return found[0] if found else None
