"""Who a process is beyond its number, so that a reused pid is never taken for it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DEAD = ("Z", "X", "x")


@dataclass(frozen=True, slots=True)
class Process:
    """`start` is opaque: boot, pid namespace and start time, equal only for the very same process."""

    host: str
    pid: int
    start: str

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"

    def alive(self) -> bool | None:
        """Whether it still runs; None when that cannot be seen from here (other host, boot or container)."""
        mine = start_of(os.getpid())
        if not mine or self.host != socket.gethostname() or _scope(self.start) != _scope(mine):
            return None
        return start_of(self.pid) == self.start

    def terminate(self) -> bool:
        """Send SIGTERM to this very process; False when it is gone."""
        if sys.platform != "linux":
            alive = self.alive() is True
            if alive:
                os.kill(self.pid, signal.SIGTERM)
            return alive
        try:
            handle = os.pidfd_open(self.pid)  # holds the process, so that the number cannot be reused meanwhile
        except ProcessLookupError:
            return False
        try:
            alive = self.alive() is True
            if alive:
                signal.pidfd_send_signal(handle, signal.SIGTERM)
            return alive
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)


def this_process() -> Process:
    return Process(socket.gethostname(), os.getpid(), start_of(os.getpid()))


def start_of(pid: int) -> str:
    """The start of a live process in an opaque form; empty when there is none."""
    return _start_linux(pid) if sys.platform == "linux" else _start_by_ps(pid)


def _start_linux(pid: int) -> str:
    try:
        # the name, in parentheses, may hold spaces; then come state (3rd) ... start in ticks since boot (22nd)
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")[:8]
        namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except (OSError, ValueError):
        return ""
    return "" if fields[0] in DEAD else f"{boot}-{namespace}-{fields[19]}"


def _start_by_ps(pid: int) -> str:
    program = shutil.which("ps")
    if program is None:
        return ""
    shown = subprocess.run(
        [program, "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    state, _, start = shown.stdout.strip().partition(" ")
    return "" if not start or state[:1] in DEAD else f"ps-{start.strip()}"


def _scope(start: str) -> str:
    """The part of `start` that says which pids can be seen."""
    return start.rpartition("-")[0] if not start.startswith("ps-") else "ps"
