"""Steps built ahead in one background thread, so that training never waits for its input."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from tunesmith.data.loader import OfflineSource
from tunesmith.types import Batch

DEPTH = 2  # steps that are kept ready: one hides the building, a second evens out long ones


@dataclass(frozen=True, slots=True)
class Ready:
    """One step and where the source stands after it."""

    batches: list[Batch]
    tokens: int
    saved: int
    epoch: float
    state: dict[str, Any]


class Ahead:
    """An offline source whose next steps are built while the last one is computed.

    Order, positions and errors are those of the source itself: a fault in the data of a step is raised when that step
    is asked for, and `state` is the place after the step handed out last. Only the thread moves the source.
    """

    def __init__(self, source: OfflineSource) -> None:
        self.source = source
        self.supplies = source.supplies
        self.worker = ThreadPoolExecutor(1, "input")
        self.waiting: deque[Future[Ready]] = deque()
        self.settle()

    def settle(self) -> None:
        """Take the source's place as ours."""
        self.step_tokens, self.step_saved = 0, 0
        self.place, self.state_now = self.source.epoch(), self.source.state()

    def next_step(self) -> list[Batch]:
        """This rank's microbatches of the next step."""
        while len(self.waiting) < DEPTH + 1:
            self.waiting.append(self.worker.submit(self.build))
        ready = self.waiting.popleft().result()
        self.step_tokens, self.step_saved = ready.tokens, ready.saved
        self.place, self.state_now = ready.epoch, ready.state
        return ready.batches

    def build(self) -> Ready:
        batches = self.source.next_step()
        return Ready(batches, self.source.step_tokens, self.source.step_saved, self.source.epoch(), self.source.state())

    def epoch(self) -> float:
        return self.place

    def state(self) -> dict[str, Any]:
        return self.state_now

    def restore(self, state: dict[str, Any]) -> None:
        """Drop what was built ahead, and go on from there."""
        wait(self.waiting)
        self.waiting.clear()
        self.source.restore(state)
        self.settle()

    def fingerprint(self) -> str:
        return self.source.fingerprint()
