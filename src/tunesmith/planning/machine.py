"""What this machine offers: cores, threads, memory that a process may really use, and the accelerator."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tunesmith.track.hardware import processor, usable_cores
from tunesmith.track.limits import group_bounds, own_bounds, read_text


@dataclass(frozen=True, slots=True)
class Machine:
    """`memory_free` is what one process may still take, on the device where it trains; bytes."""

    device: str  # "cpu" or "cuda"
    name: str
    cores: int
    threads: int
    memory_total: int
    memory_free: int


def this_machine(threads: int | None = None) -> Machine:
    """The device that a run started now would use."""
    cores = max(1, round(usable_cores()))
    used = threads or _threads_from_environment() or cores
    gpu = first_gpu()
    if gpu is not None:
        name, total, free = gpu
        return Machine("cuda", name, cores, used, total, free)
    total, free = memory_limits()
    return Machine("cpu", processor(), cores, used, total, free)


def _threads_from_environment() -> int | None:
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(text) if text.isdigit() and int(text) > 0 else None


def first_gpu() -> tuple[str, int, int] | None:
    """Name, total and free bytes of the current CUDA device."""
    import torch

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return torch.cuda.get_device_name(), total, free


def memory_limits() -> tuple[int, int]:
    """Total and free bytes: the machine's, cut by every control group and by the limits of the process.

    What a process holds already counts as free where its own limits are concerned, for a plan counts the whole process.
    """
    info = dict(line.split(":", 1) for line in read_text(Path("/proc/meminfo")).splitlines() if ":" in line)
    if not info:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total // 2
    total, free = (int(info[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    for bound in group_bounds():
        total, free = min(total, bound.limit), min(free, max(0, bound.limit - bound.used))
    for bound in own_bounds():
        total, free = min(total, bound.limit), min(free, bound.room)
    return total, free


def cpu_features() -> set[str]:
    """Flags of the first core as Linux names them; empty where it tells nothing."""
    for line in read_text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()
