"""The lock of a run directory: one process at a time, and a dead owner is no owner."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.errors import BadInput, Fix, UsageError, Where
from tunesmith.regular import NotRegular, kind_of, read_regular
from tunesmith.track.files import disk_error
from tunesmith.track.process import Process, this_process
from tunesmith.track.status import BEAT_SECONDS, STALE_SECONDS, read_status

LOCK = "run.lock"
LONGEST = 4096  # bytes of it
WATCH_SECONDS = 3 * BEAT_SECONDS
LOOK_SECONDS = 0.2


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Own the run directory inside `with`; UsageError E192 names a living owner, a dead one is replaced.

    The file holds host, pid and start of the owner, and is empty when nobody owns the directory. An owner that cannot
    be seen from here (other host or container) counts as alive while its heartbeat, or the lock itself, is fresh. No
    clock alone says that it is dead, for clocks jump and differ: it is watched for three beats of its heart first.
    """
    path = folder / LOCK
    me = this_process()
    _take(path, me)
    try:
        yield
    finally:
        _release(path, me)


def owner(folder: Path) -> Process | None:
    """The process named by the lock, dead or alive; None when there is none or it cannot be read."""
    try:
        return _parse(read_regular(folder / LOCK, LONGEST))
    except OSError:
        return None


def _take(path: Path, me: Process) -> None:
    try:
        silent = _claim(path, me, None)
        while silent is not None:
            if _beats(path.parent / "status.json"):
                raise _refusal(silent, path)
            silent = _claim(path, me, silent)
    except OSError as error:
        raise disk_error(error, path) from error


def _claim(path: Path, me: Process, watched: Process | None) -> Process | None:
    """Become the owner, unless a living one is named (UsageError) or one that must be `watched` first (returned)."""
    with _exclusive(path) as descriptor:
        holder = _parse(os.pread(descriptor, LONGEST, 0))
        if holder is not None and holder != watched:
            alive = holder.alive()
            if alive or (alive is None and _is_fresh(path, os.fstat(descriptor).st_mtime)):
                raise _refusal(holder, path)
            if alive is None:
                return holder
        content = json.dumps(asdict(me)).encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)
        os.fsync(descriptor)
    return None


def _beats(status: Path) -> bool:
    """Whether the heartbeat moves while it is watched, by the monotonic clock."""
    before, deadline = _heartbeat(status), time.monotonic() + WATCH_SECONDS
    while time.monotonic() < deadline:
        if _heartbeat(status) != before:
            return True
        time.sleep(LOOK_SECONDS)
    return False


def _release(path: Path, me: Process) -> None:
    try:
        with _exclusive(path) as descriptor:
            if _parse(os.pread(descriptor, LONGEST, 0)) == me:
                os.ftruncate(descriptor, 0)
    except OSError:  # the directory is gone or read-only by now; a dead owner is replaced anyway
        return


@contextmanager
def _exclusive(path: Path) -> Iterator[int]:
    """The open file, held against other processes only while its content is looked at and changed.

    A link is not followed, for what it leads to would be overwritten.
    """
    if path.is_symlink():
        raise NotRegular(path, "it is a link")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    try:
        kind = kind_of(os.fstat(descriptor).st_mode)
        if kind is not None:
            raise NotRegular(path, f"it is {kind}, not a file")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _parse(content: bytes) -> Process | None:
    try:
        value: Any = json.loads(content)
        return Process(str(value["host"]), int(value["pid"]), str(value["start"]))
    except (ValueError, TypeError, KeyError):
        return None


def _heartbeat(status: Path) -> float:
    with suppress(BadInput):
        return read_status(status).heartbeat
    return 0.0


def _is_fresh(path: Path, locked_at: float) -> bool:
    """Whether it was heard of just now, if the clocks are right."""
    return abs(time.time() - max(locked_at, _heartbeat(path.parent / "status.json"))) < STALE_SECONDS


def _refusal(holder: Process, path: Path) -> UsageError:
    seen = holder.alive() is not None
    evidence = [] if seen else [f"it cannot be seen from here; it counts as dead after {STALE_SECONDS:g} s of silence"]
    fixes = [
        Fix("stop it, saved", command=f"tunesmith runs stop {path.parent}"),
        Fix("start another run: run.name=NAME"),
    ]
    return UsageError(
        "E192", f"this run is in use by {holder}", where=Where(str(path.parent)), evidence=evidence, fixes=fixes
    )
