"""A clock for the parts of a training step: code says what it is, and pays next to nothing while no clock runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ContextDecorator
from dataclasses import dataclass

SPLIT = ("forward", "backward")  # phases that are told by their parts

Place = tuple[str, str]  # a phase and a part of it; the part "" is what no part of the phase claims


@dataclass(slots=True)
class Spent:
    """Wall seconds, and processor seconds of the whole process."""

    wall: float = 0.0
    cpu: float = 0.0


class Clock:
    """Charges every second between `start` and `stop` to the innermost mark, so that the shares add up to the whole.

    `wait` is called before the time is read; a device that works behind our back needs it.
    """

    def __init__(self, wait: Callable[[], object] | None = None) -> None:
        self.wait = wait
        self.spent: dict[Place, Spent] = {}
        self.stack: list[Place] = [("other", "")]
        self.wall = self.cpu = 0.0

    def start(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        RUNNING.append(self)

    def stop(self) -> None:
        """Charge the last seconds; marks that are still open no longer count. A second call changes nothing."""
        if self in RUNNING:
            self.charge()
            RUNNING.remove(self)

    def charge(self) -> None:
        if self.wait is not None:
            self.wait()
        wall, cpu = time.perf_counter(), time.process_time()
        spent = self.spent.setdefault(self.stack[-1], Spent())
        spent.wall += wall - self.wall
        spent.cpu += cpu - self.cpu
        self.wall, self.cpu = wall, cpu

    def enter(self, phase: str, part: str) -> None:
        """A phase begins wherever it stands; a part belongs to the phase around it."""
        here = self.stack[-1]
        if not phase and here[0] not in SPLIT:
            self.stack.append(here)
            return
        self.charge()
        self.stack.append((phase or here[0], part))

    def leave(self) -> None:
        if len(self.stack) == 1:  # the mark was open before the clock started
            return
        if self.stack[-1] != self.stack[-2]:
            self.charge()
        self.stack.pop()


RUNNING: list[Clock] = []


class Mark(ContextDecorator):
    """What is inside `with`, or the decorated function, is a phase of a step or a part of one."""

    def __init__(self, phase: str, part: str) -> None:
        self.phase, self.part = phase, part

    def __enter__(self) -> None:
        if RUNNING:
            RUNNING[-1].enter(self.phase, self.part)

    def __exit__(self, *_: object) -> None:
        if RUNNING:
            RUNNING[-1].leave()


def current() -> Mark:
    """The part that is computed now, for its gradient to be charged to as well."""
    return part(RUNNING[-1].stack[-1][1] if RUNNING else "")


def phase(name: str) -> Mark:
    """A phase of training: `forward`, `optimizer`, `checkpoint` ..."""
    return Mark(name, "")


def part(name: str) -> Mark:
    """A part of the forward and backward passes: `qkv`, `attention` ...; elsewhere its phase gets the time."""
    return Mark("", name)
