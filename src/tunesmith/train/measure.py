"""Peak memory of this process or its GPU."""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """GPU: most memory allocated. CPU: the high-water mark of resident memory of the process (VmHWM)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_gb(device: torch.device) -> float:
    return peak_memory_bytes(device) / 1e9


@contextmanager
def left_alone() -> Iterator[None]:
    """Garbage collection walks only through what is made from now on; the rest took it 2 % of a step."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
