"""What every rank did last, in a small shared file that can still be read when a rank is killed or stopped."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

# Every column is a double and is written in one go, so that a reader never sees half a number.
COLUMNS = ("alive", "stamped", "step", "stage", "talks", "talk", "size", "seconds")
STAGES = ("starting", "between steps", "computing", "waiting for the others")
TALKS = ("nothing", "sum", "largest", "sum of gradients", "gather", "barrier", "broadcast")
WIDTH = len(COLUMNS)


@dataclass(frozen=True, slots=True)
class Beat:
    """One rank: times are of the monotonic clock, which all processes of a machine share.

    `alive` is written by a thread, `stamped` when the rank begins something else. `talks` counts what was exchanged
    with other ranks, `talk` and `size` are the last of it, and `seconds` is the median of the last steps.
    """

    alive: float = 0.0
    stamped: float = 0.0
    step: int = 0
    stage: str = STAGES[0]
    talks: int = 0
    talk: str = TALKS[0]
    size: int = 0
    seconds: float = 0.0

    @property
    def in_step(self) -> bool:
        """Whether it is at something that should not take much longer than a step."""
        return self.step > 0 and self.stage in STAGES[2:] and self.seconds > 0

    @property
    def lateness(self) -> tuple[bool, int, float]:
        """The smaller, the more the others wait for it; the oldest stamp alone may be that of one who waits longest."""
        return self.stage == STAGES[3], self.talks, self.stamped

    def __str__(self) -> str:
        place = f"step {self.step}, {self.stage}" if self.step else self.stage
        return place + (f", exchange {self.talks}: {self.talk} of {self.size:,}" if self.talks else "")


class Beats:
    """The rows of all ranks in one file; rank r writes row r alone, and everybody may read all."""

    def __init__(self, path: Path, ranks: int) -> None:
        size = 8 * WIDTH * ranks
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), size)
        self._rows = memoryview(self._shared).cast("d")

    def row(self, rank: int) -> memoryview[float]:
        return self._rows[rank * WIDTH : (rank + 1) * WIDTH]

    def read(self, rank: int) -> Beat:
        alive, stamped, step, stage, talks, talk, size, seconds = self.row(rank)
        return Beat(alive, stamped, int(step), STAGES[int(stage)], int(talks), TALKS[int(talk)], int(size), seconds)
