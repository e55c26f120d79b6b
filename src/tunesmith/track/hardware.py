"""What a run ran on: host, cores, memory and its limit, GPUs, versions, commit; no torch needed."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("tunesmith", "torch", "transformers", "peft", "safetensors", "tokenizers", "numpy")
_UNLIMITED = 1 << 60  # cgroup v1 writes a huge number for "no limit"


def describe_machine() -> dict[str, Any]:
    """The part of `run.json` that tells of machine and software; what cannot be found out is None."""
    return {
        "hardware": {
            "host": socket.gethostname(),
            "system": platform.platform(),
            "processor": processor(),
            "cores": usable_cores(),
            "memory_bytes": memory_bytes(),
            "memory_limit_bytes": memory_limit_bytes(),
            "gpus": gpus(),
        },
        "versions": {"python": platform.python_version(), **versions()},
        "commit": commit(),
    }


def versions() -> dict[str, str | None]:
    """Installed versions, read from metadata without importing."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def usable_cores() -> float:
    """Cores this process may use: its affinity, and the quota of its cgroup where that is less."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        return min(cores, int(quota) / int(period))
    return cores


def memory_bytes() -> int | None:
    """Physical memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def memory_limit_bytes() -> int | None:
    """The memory limit of the container (cgroup v2, then v1); None when there is none."""
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(file)
        if text.isdigit():
            return int(text) if int(text) < _UNLIMITED else None
    return None


def processor() -> str:
    """The name of the CPU."""
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpus() -> list[str]:
    """Names of NVIDIA GPUs, as the driver lists them."""
    texts = [_read(str(file)) for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    lines = [line for text in texts for line in text.splitlines() if line.startswith("Model:")]
    return [line.partition(":")[2].strip() for line in lines]


def commit() -> str | None:
    """The commit of this source tree, with `+changes` when files differ; None for an installed package."""
    here = Path(__file__).resolve().parent
    if _git(here, "ls-files", "--error-unmatch", "hardware.py") is None:
        return None
    head = _git(here, "rev-parse", "HEAD")
    changes = _git(here.parent, "status", "--porcelain", "--untracked-files=no", ".")
    return f"{head}+changes" if head and changes else head


def _git(folder: Path, *words: str) -> str | None:
    program = shutil.which("git")
    if program is None:
        return None
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            [program, "-C", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=5,
            env=environment,
            check=True,
        )
    except (subprocess.SubprocessError, OSError):
        return None
    return done.stdout.strip()


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", errors="replace").strip()
    except OSError:
        return ""
