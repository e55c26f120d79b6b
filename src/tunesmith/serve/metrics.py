"""What the server counts, in the text form of Prometheus."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tunesmith.rollout.scheduler import Scheduler

BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
WINDOW = 10.0  # seconds over which a speed is told
TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(slots=True)
class Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[sum(seconds > bound for bound in BOUNDS)] += 1
        self.total += seconds

    def lines(self, name: str) -> Iterator[str]:
        below = 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self.counts, strict=True):
            below += count
            yield f'{name}_bucket{{le="{bound}"}} {below}'
        yield f"{name}_sum {self.total}"
        yield f"{name}_count {below}"


class Work(Protocol):
    """What decodes, as far as it is counted."""

    @property
    def schedulers(self) -> Sequence[Scheduler]: ...

    @property
    def waiting(self) -> int: ...


class Counted(Protocol):
    @property
    def worker(self) -> Work: ...


class Metrics:
    """Counted on the event loop; what the worker counts is read when it is asked for."""

    def __init__(self, house: Counted) -> None:
        self.house = house
        self.requests: Counter[tuple[str, int]] = Counter()
        self.cancelled = 0
        self.first_token, self.whole = Histogram(), Histogram()
        self.marks: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def text(self) -> str:
        schedulers = self.house.worker.schedulers
        made = sum(each.made for each in schedulers)
        lines: list[str] = []
        series: tuple[tuple[str, str, str, float], ...] = (
            ("requests_waiting", "gauge", "Requests that wait for a place.", self.house.worker.waiting),
            ("answers_live", "gauge", "Answers that are being made.", sum(each.live for each in schedulers)),
            ("cache_pages_used", "gauge", "Pages of keys and values in use.", sum(each.pages for each in schedulers)),
            ("tokens_generated_total", "counter", "Tokens made.", made),
            ("prompt_tokens_total", "counter", "Tokens of prompts read.", sum(each.read for each in schedulers)),
            ("tokens_per_second", "gauge", "Tokens made per second of late.", self.speed(made)),
            ("requests_cancelled_total", "counter", "Requests whose client left.", self.cancelled),
        )
        for name, kind, told, value in series:
            lines += [f"# HELP tunesmith_{name} {told}", f"# TYPE tunesmith_{name} {kind}", f"tunesmith_{name} {value}"]
        lines += head("requests_total", "counter", "Requests answered, by route and status.")
        lines += [labelled("requests_total", {"route": r, "status": str(s)}, n) for (r, s), n in self.requests.items()]
        for name, told, histogram in (
            ("time_to_first_token_seconds", "From the request to its first token.", self.first_token),
            ("request_seconds", "From the request to its last byte.", self.whole),
        ):
            lines += [*head(name, "histogram", told), *histogram.lines(f"tunesmith_{name}")]
        return "\n".join(lines) + "\n"

    def speed(self, made: int) -> float:
        """Over the time since a look that is at least WINDOW old, or the first one."""
        now = time.monotonic()
        self.marks.append((now, made))
        while len(self.marks) > 2 and self.marks[1][0] <= now - WINDOW:
            self.marks.popleft()
        then, before = self.marks[0]
        return (made - before) / max(now - then, 1e-9)


def head(name: str, kind: str, told: str) -> list[str]:
    return [f"# HELP tunesmith_{name} {told}", f"# TYPE tunesmith_{name} {kind}"]


def labelled(name: str, labels: Mapping[str, str], value: float) -> str:
    inside = ",".join(f'{key}="{text}"' for key, text in labels.items())
    return f"tunesmith_{name}{{{inside}}} {value}"
