"""What this machine offers: cores, threads, memory that a process may really use, and the accelerator."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from pathlib import Path

from tunesmith.track.hardware import processor, usable_cores

CGROUP = Path("/sys/fs/cgroup")


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
    """Total and free bytes: the machine's, cut by every control group and by the address-space limit."""
    info = dict(line.split(":", 1) for line in read_text(Path("/proc/meminfo")).splitlines() if ":" in line)
    if not info:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total // 2
    total, free = (int(info[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    for folder in cgroup_folders():
        limit, used = _group_memory(folder)
        if limit is not None:
            total, free = min(total, limit), min(free, max(0, limit - used))
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        total, free = min(total, space), min(free, space)
    return total, free


def _group_memory(folder: Path) -> tuple[int | None, int]:
    """Limit and use of one control group; cached file pages count as free."""
    for limit_name, used_name, cache_name in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, used = read_text(folder / limit_name).strip(), read_text(folder / used_name).strip()
        if limit.isdigit() and used.isdigit():
            rows = dict(line.split() for line in read_text(folder / "memory.stat").splitlines())
            return int(limit), int(used) - int(rows.get(cache_name, 0))
    return None, 0


def cgroup_folders() -> list[Path]:
    """The control groups above this process, in both versions of the file system."""
    folders = [CGROUP, CGROUP / "memory"]
    for line in read_text(Path("/proc/self/cgroup")).splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3 or parts[1] not in ("", "memory"):
            continue
        base = CGROUP / parts[1] if parts[1] else CGROUP
        inner = Path(parts[2].lstrip("/"))
        folders += [base / inner, *(base / parent for parent in inner.parents)]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def cpu_features() -> set[str]:
    """Flags of the first core as Linux names them; empty where it tells nothing."""
    for line in read_text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
