"""The supervisor: starts every rank of this machine, watches them, and tells which one failed first and how."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

from tunesmith.distributed.beats import Beat, Beats
from tunesmith.distributed.ending import Ended, Ending, diagnosed, hang
from tunesmith.distributed.launched import STACKS

LOOK_SECONDS = 0.05
SETTLE_SECONDS = 5.0  # that the other ranks have to end by themselves once one has failed
SAVED_SECONDS = 60.0  # the same once one has saved and stopped
STACK_SECONDS = 2.0
HANG_SECONDS = 60.0  # at least; else HANG_STEPS times the median step
HANG_STEPS = 5
LONG_SECONDS = 3600.0  # for what comes between steps: loading, saving, evaluating
SAVED = (0, 75, 130)
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Process(Protocol):
    """What is asked of a started rank; it leads a process group of its own. subprocess.Popen is one."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """The exit code, minus the signal that ended it, or None while it runs."""
        ...


@dataclass(slots=True)
class Launch:
    """One attempt: the ranks that `begin` started, and the folder where they leave word.

    `hang_seconds` is how long a step may stand still; None: five times the median step, at least a minute.
    """

    folder: Path
    ranks: int
    begin: Callable[[int], Process]
    hang_seconds: float | None = None
    processes: list[Process] = field(default_factory=list)
    ends: list[Ending] = field(default_factory=list)
    beats: Beats = field(init=False)
    stopped_since: dict[int, float] = field(default_factory=dict)
    asked: int | None = None  # the signal that asked for a stop

    def __post_init__(self) -> None:
        self.beats = Beats(self.folder / "beats", self.ranks)

    def run(self) -> Ended:
        """Wait for all ranks; nothing of them is left when it returns or raises."""
        try:
            with self.signals_passed_on():
                for rank in range(self.ranks):
                    self.processes.append(self.begin(rank))
                    if self.asked is not None:  # before this rank was there
                        os.kill(self.processes[-1].pid, self.asked)
                return self.watch()
        finally:
            self.kill()

    def watch(self) -> Ended:
        while len(self.ends) < self.ranks:
            self.collect()
            if any(end.code not in SAVED for end in self.ends):
                return self.conclude(SETTLE_SECONDS)
            if any(end.code for end in self.ends):
                return self.conclude(SAVED_SECONDS)
            hung = self.find_hung(time.monotonic())
            if hung is not None:
                return self.give_up_on(hung)
            time.sleep(LOOK_SECONDS)
        return self.diagnosed()

    def diagnosed(self) -> Ended:
        return diagnosed(self.folder, self.ends, self.last_beats(), asked=self.asked)

    def conclude(self, seconds: float) -> Ended:
        """One rank ended too early: the others have a little time to end as well, then all are gone."""
        deadline = time.monotonic() + seconds
        while len(self.ends) < self.ranks and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            self.collect()
        self.kill()
        return self.diagnosed()

    def give_up_on(self, hung: int) -> Ended:
        """Note the stacks of all ranks, kill them (a stopped process would ignore SIGTERM), and name the one."""
        beats = self.last_beats()
        living = self.living()
        stacks = self.stacks(living)
        silence = time.monotonic() - beats[hung].stamped
        self.kill()
        return hang(self.folder, beats, hung, silence, stacks)

    def find_hung(self, now: float) -> int | None:
        """The rank that keeps the others waiting, once nobody has begun anything new for too long.

        That is a stopped one, else one that does not wait itself, else the one with the fewest exchanges.
        """
        living = self.living()
        if not living:
            return None
        beats = {rank: self.beats.read(rank) for rank in living}
        limit = self.limit()
        for rank in living:
            if is_stopped(self.processes[rank].pid):
                if now - self.stopped_since.setdefault(rank, now) > limit:
                    return rank
            else:
                self.stopped_since.pop(rank, None)
        newest = max(beats.values(), key=lambda beat: beat.stamped)
        allowed = limit if newest.in_step else max(limit, LONG_SECONDS)
        if newest.stamped == 0 or now - newest.stamped <= allowed:
            return None
        return min(beats, key=lambda rank: (rank not in self.stopped_since, *beats[rank].lateness))

    def limit(self) -> float:
        if self.hang_seconds is not None:
            return self.hang_seconds
        seconds = max((self.beats.read(rank).seconds for rank in range(self.ranks)), default=0.0)
        return max(HANG_STEPS * seconds, HANG_SECONDS)

    def stacks(self, living: list[int]) -> dict[int, str]:
        """The stack of every thread of every rank; of a stopped one, that it is stopped."""
        asked = [rank for rank in living if not is_stopped(self.processes[rank].pid)]
        for rank in asked:
            with suppress(ProcessLookupError):
                os.kill(self.processes[rank].pid, STACKS)
        files = {rank: self.folder / f"rank{rank}.stack" for rank in asked}
        deadline, sizes = time.monotonic() + STACK_SECONDS, {}
        while time.monotonic() < deadline:
            time.sleep(4 * LOOK_SECONDS)
            before, sizes = sizes, {rank: file.stat().st_size for rank, file in files.items() if file.exists()}
            if len(sizes) == len(asked) and before == sizes and all(sizes.values()):
                break
        found = {rank: file.read_text("utf-8", errors="replace") for rank, file in files.items() if file.exists()}
        stopped = "stopped by a signal (state T), so that it could not tell its stack\n"
        return {rank: found.get(rank) or ("no stack came\n" if rank in asked else stopped) for rank in living}

    def collect(self) -> None:
        """Note the ranks that have ended since the last look."""
        ended = {end.rank for end in self.ends}
        for rank, process in enumerate(self.processes):
            if rank not in ended and (code := process.poll()) is not None:
                self.ends.append(Ending(rank, code))

    def kill(self) -> None:
        """End what still runs, with all processes that a rank has started."""
        living = self.living()
        for rank in living:
            with suppress(ProcessLookupError):
                os.killpg(self.processes[rank].pid, signal.SIGKILL)
        for rank in living:
            while self.processes[rank].poll() is None:
                time.sleep(LOOK_SECONDS / 5)
            self.ends.append(Ending(rank, -signal.SIGKILL, by_us=True))

    def living(self) -> list[int]:
        self.collect()
        ended = {end.rank for end in self.ends}
        return [rank for rank in range(len(self.processes)) if rank not in ended]

    def last_beats(self) -> list[Beat]:
        return [self.beats.read(rank) for rank in range(self.ranks)]

    @contextmanager
    def signals_passed_on(self) -> Iterator[None]:
        """Inside `with`, what asks this process to save or to stop asks every rank; SIGHUP asks to stop.

        What the process ignores, as SIGHUP under nohup, stays ignored.
        """

        def pass_on(number: int, frame: FrameType | None) -> None:
            self.asked = self.asked if number == signal.SIGUSR1 else number
            for process in self.processes:
                with suppress(ProcessLookupError):
                    if process.poll() is None:
                        os.kill(process.pid, number)

        heard = [number for number in PASSED_ON if signal.getsignal(number) != signal.SIG_IGN]
        old = {number: signal.signal(number, pass_on) for number in heard}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def is_stopped(pid: int) -> bool:
    """Whether the process was stopped by a signal; False where /proc does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()[0] in "Tt"
    except (OSError, IndexError):
        return False


RETRIED = (1, 7, 8)


def supervise(attempt: Callable[[int], Ended], restarts: int, told: Callable[[Ended, int], None]) -> Ended:
    """Attempts until one ends otherwise than by 1, 7 or 8, a step fails twice, or `restarts` are used up.

    `told` hears of the end that is answered by a restart, and of the number of the restart.
    """
    failed_at: set[int] = set()
    for number in range(restarts + 1):
        ended = attempt(number)
        if ended.code not in RETRIED or ended.asked or number == restarts:
            return ended
        if ended.step in failed_at:
            return ended.again()
        failed_at.add(ended.step)
        told(ended, number + 1)
    raise AssertionError("the last attempt returns")
