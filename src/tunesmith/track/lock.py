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
from tunesmith.track.files import disk_error
from tunesmith.track.process import Process, this_process
from tunesmith.track.status import STALE_SECONDS, read_status

LOCK = "run.lock"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Own the run directory inside `with`; UsageError E192 names a living owner, a dead one is replaced.

    The file holds host, pid and start of the owner, and is empty when nobody owns the directory. An owner that cannot
    be seen from here (other host or container) counts as alive while its heartbeat, or the lock itself, is fresh.
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
        return _parse((folder / LOCK).read_bytes())
    except OSError:
        return None


def _take(path: Path, me: Process) -> None:
    try:
        with _exclusive(path) as descriptor:
            holder = _parse(os.pread(descriptor, 4096, 0))
            if holder is not None and _is_alive(holder, path, os.fstat(descriptor).st_mtime):
                raise _refusal(holder, path)
            content = json.dumps(asdict(me)).encode()
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, content, 0)
            os.fsync(descriptor)
    except OSError as error:
        raise disk_error(error, path) from error


def _release(path: Path, me: Process) -> None:
    try:
        with _exclusive(path) as descriptor:
            if _parse(os.pread(descriptor, 4096, 0)) == me:
                os.ftruncate(descriptor, 0)
    except OSError:  # the directory is gone or read-only by now; a dead owner is replaced anyway
        return


@contextmanager
def _exclusive(path: Path) -> Iterator[int]:
    """The open file, held against other processes only while its content is looked at and changed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
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


def _is_alive(holder: Process, path: Path, locked_at: float) -> bool:
    alive = holder.alive()
    if alive is not None:
        return alive
    beats = [locked_at]
    with suppress(BadInput):
        beats.append(read_status(path.parent / "status.json").heartbeat)
    return abs(time.time() - max(beats)) < STALE_SECONDS


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
