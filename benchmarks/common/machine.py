"""What the numbers were measured on, and whether anything else was running."""

import os
import platform
import subprocess
import time
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def describe() -> dict:
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def commit(folder: Path) -> str:
    """The commit of the project, with `+changes` when its sources differ from it."""
    head = _git(folder, "rev-parse", "--short=12", "HEAD")
    return head + ("+changes" if _git(folder, "status", "--porcelain", "--", "src") else "")


def busy_seconds() -> float:
    """Processor seconds of the whole machine that were not idle, since it started."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / TICK


def busy_cores(seconds: float = 3.0) -> float:
    """How many cores are at work now; this process sleeps meanwhile."""
    before, start = busy_seconds(), time.perf_counter()
    time.sleep(seconds)
    return (busy_seconds() - before) / (time.perf_counter() - start)


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _git(folder: Path, *words: str) -> str:
    found = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    return found.stdout.strip()
