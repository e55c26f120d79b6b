"""What a rank says of itself while it works: its stage, its step, what it exchanges, and how long it waits."""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from tunesmith.distributed.beats import COLUMNS, STAGES, TALKS, WIDTH
from tunesmith.distributed.launched import launcher

BEAT_SECONDS = 0.5
ORPHAN_SECONDS = 30.0  # that a rank without its launcher has for saving
ALIVE, STAMPED, STEP, STAGE, TALK_COUNT, TALK, SIZE, SECONDS = range(len(COLUMNS))


class Heart:
    """Stamps a row of `Beats`, or memory of its own where no launcher reads it."""

    def __init__(self, row: memoryview[float] | None = None) -> None:
        own: memoryview[float] = memoryview(bytearray(8 * WIDTH)).cast("d")
        self._row = own if row is None else row
        self._steps: deque[float] = deque(maxlen=50)
        self._began = 0.0
        self.waited = 0.0  # seconds in exchanges with other ranks, waiting for them included

    def begin(self, step: int) -> None:
        """A step begins."""
        self._began = time.monotonic()
        self._row[STEP] = step
        self._stamp(2)

    def end(self) -> None:
        """A step is over; what follows may take longer than a step."""
        self._steps.append(time.monotonic() - self._began)
        self._row[SECONDS] = statistics.median(self._steps)
        self._stamp(1)

    @contextmanager
    def talking(self, kind: str, size: int) -> Iterator[None]:
        """Something is exchanged with the other ranks inside `with`."""
        before, started = self._row[STAGE], time.monotonic()
        self._row[TALK_COUNT] += 1
        self._row[TALK], self._row[SIZE] = TALKS.index(kind), size
        if STAGES[int(before)] == "computing":
            self._stamp(3)
        try:
            yield
        finally:
            self.waited += time.monotonic() - started
            self._stamp(int(before))

    def start_beating(self) -> None:
        """Beat from a thread; when the process that launched this one is gone, ask it to save and to stop."""
        self._stamp(0)
        threading.Thread(target=self._beat, args=(launcher(),), name="beat", daemon=True).start()

    def _stamp(self, stage: int) -> None:
        self._row[STAGE] = stage
        self._row[STAMPED] = self._row[ALIVE] = time.monotonic()

    def _beat(self, parent: int) -> None:
        while os.getppid() == parent:
            self._row[ALIVE] = time.monotonic()
            time.sleep(BEAT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_SECONDS)
        os._exit(128 + signal.SIGTERM)
