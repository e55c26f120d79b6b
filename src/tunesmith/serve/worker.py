"""The one thread that owns the models: it decodes for whoever asks, and outlives every failure."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from tunesmith.errors import TunesmithError
from tunesmith.rollout.orders import Order
from tunesmith.rollout.scheduler import Scheduler
from tunesmith.serve.refusals import Refusal, bug

LOG = logging.getLogger("tunesmith.serve")
Work = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Task:
    """Work that is no order, and who waits for it."""

    work: Work
    future: Future[Any]
    since: float = field(default_factory=time.monotonic)


class Worker:
    """Orders and other work in, pieces and results out. `schedulers` are found by the name of a model.

    What has not begun after `patience` seconds is refused.
    """

    def __init__(self, schedulers: Mapping[str, Scheduler], queue: int, patience: float = math.inf) -> None:
        self.by_name = schedulers
        self.schedulers = list(dict.fromkeys(schedulers.values()))
        self.queue, self.patience = queue, patience
        self.inbox: deque[Order] = deque()
        self.work: deque[Task] = deque()
        self.wake = threading.Condition()
        self.closing = False
        self.speed = 0.0  # orders begun per second, smoothed
        self.thread = threading.Thread(target=self.run, name="tunesmith-decode", daemon=True)

    def start(self) -> None:
        self.thread.start()

    @property
    def waiting(self) -> int:
        return len(self.inbox) + len(self.work) + sum(len(each.waiting) for each in self.schedulers)

    def submit(self, orders: Sequence[Order]) -> None:
        """All of them, or Refusal E415 when so many do not fit the queue."""
        with self.wake:
            self.check_room(len(orders))
            self.inbox.extend(orders)
            self.wake.notify()

    def call(self, work: Work) -> Future[Any]:
        """Do something else with a model between two tokens. Raises Refusal E415 when the queue is full."""
        future: Future[Any] = Future()
        with self.wake:
            self.check_room(1)
            self.work.append(Task(work, future))
            self.wake.notify()
        return future

    def check_room(self, count: int) -> None:
        if self.closing:
            raise Refusal("E426", "the server is shutting down", fix="ask again when it is back")
        if self.waiting + count > self.queue:
            raise self.busy("E415", f"{self.waiting} requests wait already")

    def busy(self, code: str, message: str) -> Refusal:
        error = Refusal(code, message, fix="ask again later, or less at a time")
        error.headers["Retry-After"] = str(self.seconds_until_room())
        return error

    def seconds_until_room(self) -> int:
        """A guess, from how fast orders have begun of late."""
        return min(60, max(1, math.ceil(0.25 * self.queue / self.speed))) if self.speed else 1

    def close(self) -> None:
        """Refuse what comes, end what is being made, and let the thread end."""
        with self.wake:
            self.closing = True
            self.wake.notify()
        if self.thread.is_alive():
            self.thread.join(timeout=60)

    @torch.no_grad()
    def run(self) -> None:
        since = time.monotonic()
        while True:
            with self.wake:
                if not (self.inbox or self.work or self.closing or self.is_busy):
                    self.wake.wait()
                if self.closing:
                    break
                for order in self.inbox:
                    self.by_name[order.model].waiting.append(order)
                self.inbox.clear()
                self.expire()
                work = self.work.popleft() if self.work else None
            before = sum(len(each.waiting) for each in self.schedulers)
            if work is not None:
                self.do(work)
            for scheduler in self.schedulers:
                self.turn(scheduler)
            begun = before - sum(len(each.waiting) for each in self.schedulers)
            now = time.monotonic()
            self.speed += min(1.0, (now - since) / 10) * (begun / max(now - since, 1e-6) - self.speed)
            since = now
        self.end()

    @property
    def is_busy(self) -> bool:
        return any(each.live or each.waiting for each in self.schedulers)

    def expire(self) -> None:
        """Refuse what has waited too long; what came first stands first."""
        oldest = time.monotonic() - self.patience
        gone = lambda: self.busy("E486", f"there was no place for {self.patience:g} s")  # noqa: E731
        for scheduler in self.schedulers:
            while scheduler.waiting and scheduler.waiting[0].since < oldest:
                scheduler.waiting.popleft().fail(gone())
        while self.work and self.work[0].since < oldest:
            fail(self.work.popleft().future, gone())

    def turn(self, scheduler: Scheduler) -> None:
        try:
            scheduler.turn()
        except TunesmithError as error:
            scheduler.fail(error)
        except Exception as error:  # a bug of ours, or no memory: the requests fail, the server goes on
            LOG.exception("decoding failed")
            scheduler.fail(bug(error))

    def do(self, task: Task) -> None:
        if not task.future.set_running_or_notify_cancel():
            return
        try:
            task.future.set_result(task.work())
        except TunesmithError as error:
            task.future.set_exception(error)
        except Exception as error:  # as above
            LOG.exception("a request failed")
            task.future.set_exception(bug(error))

    def end(self) -> None:
        gone = Refusal("E426", "the server is shutting down", fix="ask again when it is back")
        for scheduler in self.schedulers:
            scheduler.fail(gone)
            for order in scheduler.waiting:
                order.fail(gone)
            scheduler.waiting.clear()
        for order in self.inbox:
            order.fail(gone)
        for task in self.work:
            fail(task.future, gone)


def fail(future: Future[Any], error: TunesmithError) -> None:
    """Whoever waits hears of it; nobody may."""
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
