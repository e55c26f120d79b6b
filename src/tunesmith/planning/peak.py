"""The fastest matrix product of this machine, measured once and kept under home()."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tunesmith.errors import MachineError
from tunesmith.models.cache import make_folder
from tunesmith.paths import home
from tunesmith.planning.calibration import calibration_key
from tunesmith.planning.machine import Machine
from tunesmith.track.files import replace_text, to_json

SIDES = {"cpu": 1024, "cuda": 8192}  # of the square matrices; larger ones are hardly faster
REPEATS = 10
SECONDS = 0.25  # at most, beside the first product


def measured_peak(machine: Machine, dtype: str) -> float:
    """FLOP per second of a large product on `machine.threads` threads or the GPU; a fraction of a second at first.

    What was measured before on the same device, type, threads and torch is taken again.
    """
    key = f"{calibration_key(machine, dtype)}, torch {torch.__version__}"
    peaks = _read()
    if key not in peaks:
        peaks[key] = measure_peak(machine.device, dtype)
        try:
            make_folder(home())
            replace_text(peaks_file(), to_json({"schema": 1, "peaks": peaks}, indent=1) + "\n")
        except (OSError, MachineError):  # a home that cannot be written costs a measurement per run, and nothing else
            return peaks[key]
    return peaks[key]


TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def measure_peak(device: str, dtype: str) -> float:
    """The fastest of some repeated products, now."""
    side, kind = SIDES[device], TYPES[dtype]
    generator = torch.Generator(device).manual_seed(0)  # the run's own chance stays where it is
    left, right = (torch.randn(side, side, generator=generator, device=device).to(kind) for _ in range(2))
    out = torch.empty_like(left)
    return 2.0 * side**3 / fastest(lambda: torch.mm(left, right.T, out=out), device)


@torch.no_grad()
def fastest(product: Callable[[], object], device: str, seconds: float = SECONDS) -> float:
    """Seconds of the fastest of up to REPEATS calls in about `seconds`; the first call does not count.

    On a CPU they are processor seconds by thread: what else runs on the machine just now does not matter.
    """
    threads = torch.get_num_threads()

    def now() -> float:
        if device == "cpu":
            return time.process_time() / threads
        torch.cuda.synchronize()
        return time.perf_counter()

    product()
    begun, least = now(), float("inf")
    for _ in range(REPEATS):
        started = now()
        product()
        ended = now()
        least = min(least, ended - started)
        if ended - begun >= seconds:
            break
    return least


def peaks_file() -> Path:
    return home() / "peaks.json"


def _read() -> dict[str, float]:
    """Peaks by key; a file that cannot be read counts as none."""
    try:
        peaks = json.loads(peaks_file().read_text(encoding="utf-8"))["peaks"]
        return {key: float(value) for key, value in peaks.items() if float(value) > 0}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
