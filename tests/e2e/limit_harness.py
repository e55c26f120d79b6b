"""Trainings whose limits are cut for real, in the middle: memory, files, threads. Each one is a fork.

Usage: python -m tests.e2e.limit_harness FOLDER. One JSON object to stdout: for each case the exit code, what was told,
the events, and the steps whose checkpoints verify.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.attempts import set_up, start, tiny_recipe, wait
from tests.records import WORDS

from tunesmith.distributed.mesh import Mesh
from tunesmith.recipe import Recipe
from tunesmith.run import execute
from tunesmith.track.limits import status_sizes
from tunesmith.track.progress import NoProgress
from tunesmith.track.reader import read_lines, read_metrics
from tunesmith.track.run_dir import RunDir
from tunesmith.train import loop
from tunesmith.train.checkpoint import CheckpointStore

CUT_AT = 5  # the call of compute_step, whose step is the first of long examples
MB = 1 << 20


def wide_recipe(folder: Path) -> Recipe:
    """Four steps of short examples, then four of long ones that make one large microbatch."""
    rows = [{"prompt": f"{index}", "completion": " ".join(WORDS[:2])} for index in range(64)]
    rows += [{"prompt": f"{index}", "completion": " ".join(WORDS * 12)[:900]} for index in range(64)]
    data = folder / "wide.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {
        "data.train": data,
        "data.eval": [],
        "data.shuffle": False,
        "data.max_length": 512,
        "model.adapter": "full",
        "train.epochs": 1,
        "train.sequences_per_step": 16,
        "train.microbatch_tokens": 8192,
        "train.evaluate_every": 0,
        "train.optimizer.lr": 1e-4,
        "train.stability.on_spike": "off",
    }
    return tiny_recipe(folder, changes=changes)


def mapped(more: int) -> None:
    """No more than `more` bytes of further addresses."""
    limit = status_sizes()["VmSize"] + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


HELD: list[bytearray] = []


def used_up() -> None:
    """No further addresses, and what the process has already is taken but for a megabyte."""
    mapped(0)
    for size in (MB, MB // 16, MB // 64):
        try:
            while True:
                HELD.append(bytearray(size))
        except MemoryError:
            continue
    del HELD[-64:]


def few_files(more: int) -> None:
    limit = len(os.listdir("/proc/self/fd")) - 1 + more
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def huge_stacks() -> None:
    """A thread asks for more addresses than there are, so that the system refuses it: RLIMIT_NPROC binds no root."""
    threading.stack_size(1024 * MB)
    mapped(800 * MB)


CASES: dict[str, tuple[int, Callable[[], None]]] = {  # at which step, what is cut; 0: before the run
    "free": (CUT_AT, lambda: None),
    "halved": (CUT_AT, lambda: mapped(1 * MB)),
    "no memory": (CUT_AT, used_up),
    "no files": (CUT_AT, lambda: few_files(0)),
    "no threads": (0, huge_stacks),
}


def train(recipe: Recipe, run: Path, at: int, cut: Callable[[], None]) -> None:
    calls, compute = iter(range(1, 1000)), loop.compute_step

    def cutting(*given: Any, **named: Any) -> Any:
        if next(calls) == at:
            cut()
        return compute(*given, **named)

    loop.compute_step = cutting
    resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
    if at == 0:
        cut()
    execute(recipe, RunDir(run), Mesh(), NoProgress())


def report(run: Path, code: int) -> dict[str, Any]:
    store = CheckpointStore(run / "checkpoints")
    newest = store.newest()
    losses = [row["train/loss"] for row in read_metrics(run / "metrics.jsonl") if "train/loss" in row]
    return {
        "code": code,
        "told": run.with_suffix(".log").read_text(),
        "events": [row for row in read_lines(run / "events.jsonl") if row["event"] == "out_of_memory"],
        "losses": losses,
        "newest": newest.step if newest else None,
        "damaged": [] if newest is None else [str(one) for one in newest.skipped],
        "cores": [path.name for path in run.iterdir() if path.name.startswith("core")],
        "left": [path.name for path in (run / "checkpoints").glob(".tmp-*")],
    }


def main(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    set_up(folder)
    recipe, found = wide_recipe(folder), {}
    for name, (at, cut) in CASES.items():
        run = folder / "runs" / name.replace(" ", "-")
        run.mkdir(parents=True)
        code = wait(start(lambda run=run, at=at, cut=cut: train(recipe, run, at, cut), run.with_suffix(".log")))
        found[name] = report(run, code)
        print(name, code, file=sys.stderr, flush=True)
    return {"cases": found, "problems": []}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))) + "\n")
