"""A row of a benchmark's table, and the rule that nothing is measured on a busy machine."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from common import machine
from common.process import run_side

TORCH = "2.13.0"
BUSY = 0.3  # cores that other processes may take


@dataclass
class Side:
    """One row of the table: a program, its environment and its settings."""

    name: str
    python: Path | str
    script: str
    settings: dict = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    runs: list[dict] = field(default_factory=list)

    def train(self, settings: dict) -> dict:
        """One run in a process of its own, with the row's settings and variables on top."""
        return run_side(self.python, self.script, {**settings, **self.settings, "task": "train"}, self.environment)


def check_load(allow: bool) -> float:
    busy = round(machine.busy_cores(), 2)
    if busy > BUSY and not allow:
        raise SystemExit(
            f"{busy} cores are busy before the run; wait, or pass --allow-load and say so with the figures"
        )
    return busy


def alternate(sides: list[Side], repeats: int, allow_load: bool, run: Callable[[Side], dict]) -> Iterator[float]:
    """Run the sides in turn, `repeats` times; yields how busy the machine was before each run."""
    for repeat in range(repeats):
        for side in sides:
            yield check_load(allow_load)
            side.runs.append(run(side))
            shown = side.runs[-1]
            print(
                f"{repeat + 1}/{repeats} {side.name}: {shown['tokens_per_second']:.0f} tok/s, "
                f"{shown['tokens_per_cpu_second']:.0f} tok/CPU-s, {shown['peak_bytes'] / 2**30:.2f} GiB",
                file=sys.stderr,
            )
