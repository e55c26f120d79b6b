"""What is known of each method: what it trains, takes, learns and forgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from tunesmith.evaluate.front import unbeaten

BASE = "base model"


@dataclass(frozen=True, slots=True)
class Row:
    """One method. Bytes, seconds, tokens of the data per second of the clock and of the processor, after three steps.

    `score` and its interval are of the task.

    `general` is the loss on general data, `forgotten` how much it rose over that of the base model. None stands for
    what was not measured; `problem` says in one line why a method was not trained.
    """

    name: str
    settings: tuple[str, ...] = ()
    trainable: int = 0
    share: float = 0.0  # of all parameters
    rate: float | None = None
    planned_bytes: int | None = None
    peak_bytes: int | None = None
    tokens_per_second: float | None = None
    tokens_per_cpu_second: float | None = None
    seconds: float | None = None
    steps: int | None = None
    metric: str | None = None
    score: float | None = None
    low: float | None = None
    high: float | None = None
    task_loss: float | None = None
    general: float | None = None
    forgotten: float | None = None
    file_bytes: int | None = None
    problem: str | None = None

    @property
    def planned_over_peak(self) -> float | None:
        return self.planned_bytes / self.peak_bytes if self.planned_bytes and self.peak_bytes else None

    @property
    def trained(self) -> bool:
        return self.problem is None and self.name != BASE

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "settings": list(self.settings)}

    @classmethod
    def of_json(cls, found: dict[str, Any]) -> Row:
        known = {field.name: found[field.name] for field in fields(cls) if field.name in found}
        return cls(**{**known, "settings": tuple(known.get("settings", ()))})


def front(rows: Sequence[Row]) -> tuple[str, ...]:
    """Names of the methods that no other one beats: none has as good a score, forgets as little and takes as little.

    Little is measured by the peak of memory; one of the three must be better for a method to be beaten.
    """
    points = {
        row.name: (-row.score, row.forgotten or 0.0, float(row.peak_bytes))
        for row in rows
        if row.trained and row.score is not None and row.peak_bytes is not None
    }
    return unbeaten(points)
