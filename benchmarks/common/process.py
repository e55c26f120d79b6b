"""One side's run in its own process, with settings in and figures out as JSON files."""

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from common.machine import busy_seconds

SIDES = Path(__file__).parents[1] / "sides"


def environment(threads: int) -> dict[str, str]:
    """The variables every side runs under, on top of the caller's."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }


def run_side(python: Path | str, script: str, settings: dict, extra: dict[str, str] | None = None) -> dict:
    """What the script wrote, plus how busy other processes kept the machine meanwhile; the side's output on failure.

    `extra` are variables of this side alone. `started` is on the clock of the side's own `ends`.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "settings.json"
        settings = {**settings, "out": f"{folder}/result.json", "folder": f"{folder}/runs"}
        given.write_text(json.dumps(settings))
        before, start = busy_seconds(), time.perf_counter()
        child = subprocess.Popen(
            [python, SIDES / script, given],
            env={
                **os.environ,
                **environment(settings["threads"]),
                "HF_DATASETS_CACHE": f"{folder}/cache",
                **(extra or {}),
            },
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        output, own = _wait(child)
        seconds = time.perf_counter() - start
        if child.returncode:
            raise SystemExit(f"{script} failed with {child.returncode}:\n{output[-4000:]}")
        result = json.loads(Path(settings["out"]).read_text())
    others = max(0.0, busy_seconds() - before - own) / seconds
    return {
        **result,
        "started": start,
        "process_seconds": seconds,
        "process_cpu_seconds": own,
        "other_busy_cores": round(others, 3),
    }


def _wait(child: subprocess.Popen) -> tuple[str, float]:
    """The child's output, and the processor seconds of it and of its own children."""
    before = _children_seconds()
    output, _ = child.communicate()
    return output, _children_seconds() - before


def _children_seconds() -> float:
    spent = os.times()
    return spent.children_user + spent.children_system
