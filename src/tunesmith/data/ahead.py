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
    begun: dict[str, Any]
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
        self.begun = self.state_now

    def next_step(self) -> list[Batch]:
        """This rank's microbatches of the next step."""
        while len(self.waiting) < DEPTH + 1:
            self.waiting.append(self.worker.submit(self.build))
        ready = self.waiting.popleft().result()
        self.step_tokens, self.step_saved = ready.tokens, ready.saved
        self.place, self.begun, self.state_now = ready.epoch, ready.begun, ready.state
        return ready.batches

    def build(self) -> Ready:
        source = self.source
        batches = source.next_step()
        return Ready(batches, source.step_tokens, source.step_saved, source.epoch(), source.begun, source.state())

    def epoch(self) -> float:
        return self.place

    def state(self) -> dict[str, Any]:
        return self.state_now

    def again(self, microbatch_tokens: int) -> list[Batch]:
        """The step handed out last in smaller microbatches, which later steps have as well."""
        self.restore(self.begun, microbatch_tokens)
        return self.next_step()

    def restore(self, state: dict[str, Any], microbatch_tokens: int = 0) -> None:
        """Drop what was built ahead, and go on from there, in other microbatches when told so."""
        wait(self.waiting)
        self.waiting.clear()
        self.source.restore(state, microbatch_tokens)
        self.settle()

    def fingerprint(self) -> str:
        return self.source.fingerprint()
