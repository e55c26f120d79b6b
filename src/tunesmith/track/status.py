"""`status.json`: what a run says of itself, its heartbeat, and whether that can be believed."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from tunesmith.errors import BadInput, MachineError, Where
from tunesmith.track.files import read_object, replace_text, to_json
from tunesmith.track.process import Process, this_process

State = Literal[
    "planned",
    "queued",
    "loading",
    "running",
    "saving",
    "stopping",
    "finished",
    "stopped",
    "preempted",
    "failed",
    "lost",
    "damaged",
]
STATES: tuple[str, ...] = get_args(State)
ACTIVE = frozenset({"loading", "running", "saving", "stopping"})

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
REWRITE_SECONDS = 1.0  # a step alone rewrites the file at most this often


@dataclass(frozen=True, slots=True)
class Status:
    """Times are seconds since 1970, `eta` is seconds from the heartbeat on; `step` counts finished steps."""

    state: State
    host: str
    pid: int
    pid_start: str
    heartbeat: float
    step: int = 0
    total: int | None = None
    last_step: float | None = None
    eta: float | None = None
    attempt: int = 1
    exit_code: int | None = None
    phase: str = ""

    @property
    def process(self) -> Process:
        return Process(self.host, self.pid, self.pid_start)

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_status(path: Path) -> Status:
    """Parse `status.json`; unknown keys are left out, BadInput E193 for a damaged file."""
    value = read_object(path)
    known = {name: value[name] for name in Status.__dataclass_fields__ if name in value}
    try:
        status = Status(**known)
    except TypeError:
        raise BadInput("E193", f"{path.name} lacks a field", where=Where(str(path))) from None
    if not _is_sound(status):
        raise BadInput("E193", f"{path.name} holds a wrong value", where=Where(str(path)))
    return status


def _is_sound(status: Status) -> bool:
    counts = (status.pid, status.step, status.attempt, status.total, status.exit_code)
    times = (status.heartbeat, status.last_step, status.eta)
    texts = (status.state, status.host, status.pid_start, status.phase)
    return (
        status.state in STATES
        and all(isinstance(count, int | None) for count in counts)
        and all(isinstance(time, int | float | None) for time in times)
        and all(isinstance(text, str) for text in texts)
        and None not in (*counts[:3], status.heartbeat)
    )


def observed(status: Status, now: float | None = None) -> tuple[State, str]:
    """The state to believe and why: an active run whose process or heartbeat is gone is `lost`."""
    if not status.active:
        return status.state, ""
    age = abs((time.time() if now is None else now) - status.heartbeat)
    alive = status.process.alive()
    if alive is False:
        return "lost", f"{status.process} is gone"
    if age > STALE_SECONDS:
        return "lost", f"no heartbeat for {age:,.0f} s"
    if alive is None:
        return status.state, f"by its heartbeat alone: {status.process} cannot be seen from here"
    return status.state, ""


class Pace:
    """How long the rest takes, from the monotonic times of the last steps."""

    def __init__(self, window: int = 50) -> None:
        self._marks: deque[tuple[float, int]] = deque(maxlen=window)

    def note(self, step: int) -> None:
        self._marks.append((time.monotonic(), step))

    def remaining(self, total: int | None) -> float | None:
        """Seconds to `total`; None before two steps are known."""
        if total is None or len(self._marks) < 2:
            return None
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        if last <= first:
            return None
        return max(0, total - last) * (end - start) / (last - first)


class StatusWriter:
    """Keeps `status.json` current and beats its heart from a thread, so that a long step never looks dead."""

    def __init__(self, path: Path, attempt: int, beat_seconds: float = BEAT_SECONDS, *, step: int = 0) -> None:
        process = this_process()
        self._path = path
        self._lock = threading.Lock()
        now = time.time()
        self._status = Status("loading", process.host, process.pid, process.start, now, step, attempt=attempt)
        self._pace = Pace()
        self._written = 0.0
        self._done = threading.Event()
        self._write(sync=True)
        self._thread = threading.Thread(target=self._beat, args=(beat_seconds,), name="heartbeat", daemon=True)
        self._thread.start()

    @property
    def current(self) -> Status:
        return self._status

    def set(
        self, state: State, *, total: int | None = None, phase: str | None = None, exit_code: int | None = None
    ) -> None:
        """Change the state; what is None stays as it is."""
        with self._lock:
            old = self._status
            self._status = replace(
                old,
                state=state,
                total=old.total if total is None else total,
                phase=old.phase if phase is None else phase,
                exit_code=old.exit_code if exit_code is None else exit_code,
                eta=old.eta if state in ACTIVE else None,
            )
            self._write(sync=state != old.state)

    def step(self, step: int) -> None:
        """Note a finished step; the file follows at most once a second."""
        with self._lock:
            self._pace.note(step)
            eta = self._pace.remaining(self._status.total)
            self._status = replace(self._status, step=step, last_step=time.time(), eta=eta)
            if time.monotonic() - self._written >= REWRITE_SECONDS:
                self._write(sync=False)

    def begin(self, step: int) -> None:
        """Set the number of finished steps at a resume."""
        with self._lock:
            self._status = replace(self._status, step=step)
            self._write(sync=False)

    def close(self, state: State, exit_code: int) -> None:
        """Write the final state and stop the heart."""
        self._done.set()
        self._thread.join()
        self.set(state, exit_code=exit_code, phase="")

    def _beat(self, seconds: float) -> None:
        while not self._done.wait(seconds):
            with self._lock:
                try:
                    self._write(sync=False)
                except MachineError:  # a full disk is reported by what the run itself writes; the next beat tries again
                    continue

    def _write(self, *, sync: bool) -> None:
        self._status = replace(self._status, heartbeat=time.time())
        replace_text(self._path, to_json(self._status.to_json(), indent=1) + "\n", sync=sync)
        self._written = time.monotonic()
