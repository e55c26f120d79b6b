"""What a run came to, from its own files, and how that compares with its plan."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.track.reader import Row, latest, number, read_lines, read_metrics, series
from tunesmith.track.run_dir import RunDir

FINISH = "finish"  # the event whose fields are those of Outcome


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds are those of training steps; `tokens_per_step` is a mean; what is unknown is None.

    `mfu` is the share of the machine's measured peak that the model FLOP of the steps used.
    """

    steps: int = 0
    tokens: int = 0
    scored_tokens: float | None = None
    saved_tokens: float | None = None
    seconds: float | None = None
    tokens_per_step: float | None = None
    tokens_per_second: float | None = None
    scored_tokens_per_second: float | None = None
    mfu: float | None = None
    peak_memory_bytes: float | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    eval_loss: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def outcome(run: RunDir) -> Outcome:
    """From the metrics, so that a killed run has one too; the finish event wins where it says more."""
    measured = from_metrics(read_metrics(run.metrics_file))
    said: Row = {}
    for row in read_lines(run.events_file):
        if row.get("event") == FINISH:
            said = row
    known = measured.to_json()
    for name in known:
        value = number(said.get(name))
        if value is not None:
            known[name] = int(value) if name in ("steps", "tokens") else value
    return Outcome(**known)


def from_metrics(rows: list[Row]) -> Outcome:
    steps, losses = series(rows, "train/loss")
    _, peaks = series(rows, "mem/peak_gb")
    _, durations = series(rows, "perf/step_s")
    _, sizes = series(rows, "train/tokens_per_step")
    _, saved = series(rows, "train/saved_per_step")
    _, scored = series(rows, "train/scored_per_step")
    _, shares = series(rows, "perf/mfu")
    seconds = sum(durations) if durations else None
    tokens = max((int(value) for value in series(rows, "tokens")[1]), default=0)
    return Outcome(
        steps=max(steps, default=0),
        tokens=tokens,
        saved_tokens=sum(saved) if saved else None,
        seconds=seconds,
        tokens_per_step=sum(sizes) / len(sizes) if sizes else None,
        tokens_per_second=tokens / seconds if seconds else None,
        scored_tokens_per_second=sum(scored) / seconds if scored and seconds else None,
        mfu=sum(map(operator.mul, shares, durations)) / seconds if len(shares) == len(durations) and seconds else None,
        peak_memory_bytes=max(peaks) * 1e9 if peaks else None,
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
        eval_loss=latest(rows).get("eval/loss"),
    )


@dataclass(frozen=True, slots=True)
class Compared:
    """One planned figure beside what it became; `ratio` is actual / plan."""

    name: str
    plan: float
    actual: float | None

    @property
    def ratio(self) -> float | None:
        return self.actual / self.plan if self.actual is not None and self.plan else None

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "plan": self.plan, "actual": self.actual, "ratio": self.ratio}


def compare_with_plan(plan: Mapping[str, Any], actual: Outcome) -> list[Compared]:
    """Steps, tokens per step, time, speed and peak memory, as far as the plan names them."""
    memory = plan.get("memory")
    steps, size, seconds = (number(plan.get(name)) for name in ("steps", "tokens_per_step", "seconds"))
    speed = steps * size / seconds if steps and size and seconds else None
    pairs: list[tuple[str, float | None, float | None]] = [
        ("steps", steps, actual.steps),
        ("tokens_per_step", size, actual.tokens_per_step),
        ("seconds", seconds, actual.seconds),
        ("tokens_per_second", speed, actual.tokens_per_second),
        (
            "peak_memory_bytes",
            number(memory.get("peak")) if isinstance(memory, Mapping) else None,
            actual.peak_memory_bytes,
        ),
    ]
    return [Compared(name, planned, became) for name, planned, became in pairs if planned is not None]
