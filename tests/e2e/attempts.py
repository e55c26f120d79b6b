"""Tiny trainings as processes that can be watched, killed and compared; torch is imported once, each one is a fork."""

from __future__ import annotations

import gc
import hashlib
import os
import select
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tests.records import write_records
from tests.tiny import tiny_model_folder

from tunesmith import faults
from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import TunesmithError
from tunesmith.objectives import OBJECTIVES
from tunesmith.recipe import Recipe, load_recipe
from tunesmith.run import execute
from tunesmith.track.outcome import FINISH
from tunesmith.track.progress import NoProgress
from tunesmith.track.reader import read_lines, read_metrics
from tunesmith.track.run_dir import RunDir
from tunesmith.train.checkpoint import CheckpointStore
from tunesmith.train.manifest import code_hash


def set_up(folder: Path) -> None:
    """Make the inputs in a fork, so that this process stays a clean one to fork from.

    What it holds is frozen: else the first garbage collection of every fork copies all of it, which takes longer than
    a tiny training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    os.environ["TUNESMITH_HOME"] = str(folder / "home")
    log = folder / "inputs.log"
    assert wait(start(lambda: make_inputs(folder), log)) == 0, log.read_text()
    code_hash()  # once for all forks
    gc.collect()
    gc.freeze()


def make_inputs(folder: Path) -> None:
    """A tiny model, and records of different lengths for every kind of objective."""
    tiny_model_folder(folder / "model")
    for kind in ("sequence", "pair", "feedback", "ranking", "label", "process"):
        write_records(folder / f"{kind}.jsonl", kind, 22)
        write_records(folder / f"{kind}_held_out.jsonl", kind, 4, seed=1)


def tiny_recipe(folder: Path, objective: str = "sft", changes: Mapping[str, object] = MappingProxyType({})) -> Recipe:
    """Two epochs, several packed microbatches per step, a short last step, dropout, and a best checkpoint to keep.

    A change to None takes a setting away.
    """
    kind = next(each.kind for each in OBJECTIVES if each.model_fields["name"].default == objective)
    settings = {
        "model.path": folder / "model",
        "model.adapter.rank": 2,
        "model.adapter.dropout": 0.1 if objective == "sft" else 0.0,
        "objective": objective,
        "data.train": folder / f"{kind}.jsonl",
        "data.eval": folder / f"{kind}_held_out.jsonl",
        "data.max_length": 96,
        "train.epochs": 2,
        "train.sequences_per_step": 4,
        "train.microbatch_tokens": 96,
        "train.checkpoint.every": 2,
        "train.evaluate_every": 3,
        "train.stability.on_spike": "skip",
        "train.threads": 1,
        **changes,
    }
    given = [f"{key}={value}" for key, value in settings.items() if value is not None]
    return load_recipe(None, given, {}).recipe


def start(work: Callable[[], None], log: Path) -> int:
    """Run `work` in a fork with its output in `log`; returns the pid. Our errors keep their exit code."""
    child = os.fork()
    if child:
        return child
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        work()
        os._exit(0)
    except SystemExit as error:
        os._exit(int(error.code or 0))
    except TunesmithError as error:
        os.write(2, f"{error}\n".encode())
        os._exit(error.exit_code)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        os._exit(1)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Attempt:
    """One process that trains, and the failpoints it has passed, which it tells through a pipe as it goes."""

    def __init__(self, recipe: Recipe, run: Path, armed: str = "") -> None:
        run.mkdir(parents=True, exist_ok=True)
        self.run = run
        self.passed: list[str] = []
        self.committed = 0  # the newest step whose checkpoint it had renamed
        self.times: list[float] = []
        self.code: int | None = None
        self.cpu = 0.0  # seconds of processor time, once it has ended by itself
        self.began = time.monotonic()
        pipe = run.with_suffix(".pipe")
        if not pipe.exists():
            os.mkfifo(pipe)
        self._end = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
        self._rest = ""
        self.child = start(lambda: train(recipe, run, f"*:trace:{pipe}; {armed}"), run.with_suffix(".log"))

    def watch(self, until: Callable[[], bool], seconds: float) -> bool:
        """Follow the process until the condition holds (True), it has ended or time is up (False)."""
        deadline = time.monotonic() + seconds
        while not until():
            left = deadline - time.monotonic()
            if self.code is not None or left <= 0:
                return False
            if select.select([self._end], [], [], min(left, 0.02))[0]:
                self._read()
            else:
                self._poll()
        return True

    def finish(self) -> int:
        self.watch(lambda: False, 600)  # the first one compiles kernels
        assert self.code is not None, f"{self.run.name} hangs after {self.passed[-3:]}"
        return self.close()

    def reach(self, point: str, times: int = 1) -> bool:
        """Wait until the process has passed a failpoint so often; False when it ended before."""
        return self.watch(lambda: self.passed.count(point) >= times, 60)

    def pause(self, seconds: float) -> None:
        self.watch(lambda: False, seconds)

    def kill(self) -> int:
        """SIGKILL; the exit code tells whether the process was still there."""
        if self.code is None:
            os.kill(self.child, signal.SIGKILL)
            self.code = wait(self.child)
        return self.close()

    def close(self) -> int:
        assert self.code is not None
        self._read()
        os.close(self._end)
        return self.code

    def cpu_so_far(self) -> float:
        """Seconds of processor time of the living process."""
        fields = Path(f"/proc/{self.child}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _poll(self) -> None:
        done, status, used = os.wait4(self.child, os.WNOHANG)
        if done:
            self.code, self.cpu = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime

    def _read(self) -> None:
        try:
            text = self._rest + os.read(self._end, 1 << 20).decode()
        except BlockingIOError:
            return
        *lines, self._rest = text.split("\n")
        told = [line.split() for line in lines]
        self.passed += [point for point, *_ in told]
        steps = [int(step) for point, step, *_ in told if point == "ckpt.after_rename"]
        self.committed = max([self.committed, *steps])
        self.times += [time.monotonic()] * len(lines)

    @property
    def log(self) -> str:
        return self.run.with_suffix(".log").read_text()[-3000:]


def train(recipe: Recipe, run: Path, armed: str) -> None:
    faults.arm(armed)
    execute(recipe, RunDir(run), Mesh(), NoProgress())


def outcome(run: Path) -> dict[str, Any]:
    """Everything that must be the same to the bit: losses, weights, optimiser, position, guard."""
    rows = [
        {key: value for key, value in row.items() if key == "step" or key.startswith(("train/", "eval/"))}
        for row in read_metrics(run / "metrics.jsonl")
    ]
    newest = CheckpointStore(run / "checkpoints").newest()
    assert newest is not None
    files = {name: entry["sha256"] for name, entry in newest.manifest["files"].items() if name != "state.json"}
    exported = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(run.rglob("adapter_model*"))
    }
    best = CheckpointStore(run / "checkpoints").best()
    state = {name: newest.state[name] for name in ("source", "guard", "total")}
    events = [row["event"] for row in read_lines(run / "events.jsonl") if row["event"] == FINISH]
    return {
        "rows": rows,
        "files": files,
        "exported": exported,
        "state": state,
        "best": best.step if best else None,
        "finished": bool(events),
        "kept": sorted(path.name for path in run.iterdir() if path.suffix in (".json", ".yaml")),
    }


def difference(found: dict[str, Any], want: dict[str, Any]) -> str:
    parts = [key for key in want if found[key] != want[key]]
    if "rows" in parts:
        pairs = zip(found["rows"], want["rows"], strict=False)
        first = next(((a, b) for a, b in pairs if a != b), (len(found["rows"]), len(want["rows"])))
        parts.append(f"first row: {first}")
    return ", ".join(parts)
