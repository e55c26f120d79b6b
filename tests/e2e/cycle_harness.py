"""Start trainings, servers and pairs of ranks, stop them in every way, and look for what they leave behind.

Usage: python -m tests.e2e.cycle_harness FOLDER CYCLES [SEED]. Every command is a fork of this process, which has torch;
ranks are processes of their own. This process adopts what they leave (a subreaper), so that no orphan is overlooked.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.distributed.crew import own_listeners
from tests.e2e.attempts import outcome, set_up, start, tiny_recipe

from tunesmith.__main__ import main as tunesmith
from tunesmith.distributed.word import PREFIX
from tunesmith.iterate.planning import plan_any
from tunesmith.recipe import to_yaml
from tunesmith.serve.house import House
from tunesmith.serve.server import Server
from tunesmith.track.lock import LOCK

LOADED = (plan_any, House, Server)  # once, not in every fork
PR_SET_CHILD_SUBREAPER = 36
STOPS = {"finish": None, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT, "SIGKILL": signal.SIGKILL}
LAST = {"train": 1.5, "serve": 2.0, "ranks": 14.0}  # seconds within which a signal comes
ALONE_SECONDS = 45.0  # that ranks without a launcher have for saving and leaving
CODES = {"finish": {0}, "SIGTERM": {0, 75, 143, -15}, "SIGINT": {0, 130, -2}, "SIGKILL": {0, -9}}


class Cycles:
    """Cycles so far, and what they left."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.dice = folder, random.Random(seed)
        self.shared = set(os.listdir("/dev/shm"))
        self.recipe = folder / "recipe.yaml"
        plain = {"train.evaluate_every": 0, "data.eval": [], "run.folder": folder / "runs"}
        self.recipe.write_text(to_yaml(tiny_recipe(folder, changes=plain)))
        self.counts: Counter[str] = Counter()
        self.orphans = 0  # processes that outlived a killed launcher for a while, as ranks do that save
        self.problems: list[str] = []

    def words(self, kind: str, number: int) -> list[str]:
        if kind == "serve":
            return ["serve", str(self.folder / "model"), "--port", "0"]
        name = f"{kind}-{number // 100}"
        given = [f"run.name={name}", "--resume", "auto", "--yes", "--json"]
        return ["train", str(self.recipe), *given, *(["--ranks", "2"] if kind == "ranks" else [])]

    def cycle(self, kind: str, stop: str, number: int) -> None:
        log = self.folder / f"{kind}.log"
        words = self.words(kind, number)
        child = start(lambda: command(words), log)
        number_of = STOPS[stop] or (signal.SIGTERM if kind == "serve" else None)
        if number_of is not None:
            time.sleep(self.dice.uniform(0.0, LAST[kind]) if stop != "finish" else LAST[kind])
            with suppress(ProcessLookupError):
                os.kill(child, number_of)
        code = self.ended(child, 120)
        allowed = CODES["SIGTERM" if kind == "serve" and stop == "finish" else stop]
        if code not in allowed:
            self.problems.append(f"{kind} {stop}: exit code {code}: {log.read_text()[-1500:]}")
        self.alone(f"{kind} {stop}")
        self.counts[f"{kind} {stop}"] += 1

    def ended(self, child: int, seconds: float) -> int:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return 999

    def alone(self, what: str) -> None:
        """Wait until nobody is left but this process."""
        self.orphans += len(family())
        deadline = time.monotonic() + ALONE_SECONDS
        while family() and time.monotonic() < deadline:
            reap()
            time.sleep(0.01)
        for pid in family():
            with suppress(OSError):
                self.problems.append(f"{what}: {pid} is left: {Path(f'/proc/{pid}/cmdline').read_bytes()[:300]!r}")
                self.problems += [f"{what}: {pid} listens at {address}" for address in own_listeners(pid)]
                os.kill(pid, signal.SIGKILL)

    def finish(self) -> None:
        """Every run is started once more, to its end: what is left then is left for good."""
        runs = sorted((self.folder / "runs").glob("*-*"))
        made: dict[str, dict[str, Any]] = {}
        for run in runs:
            kind = run.name.partition("-")[0]
            self.cycle(kind, "finish", 100 * int(run.name.partition("-")[2]))
            found = outcome(run)
            want = made.setdefault(kind, found)
            if (found["files"], found["rows"]) != (want["files"], want["rows"]):
                self.problems.append(f"{run.name} is not equal to the bit")
            left = [
                path.name for path in run.rglob("*") if path.name.startswith((".tmp", ".status")) or "tmp" in path.name
            ]
            if left or (run / LOCK).read_bytes():
                self.problems.append(f"{run.name} still holds {left} and the lock {(run / LOCK).read_bytes()!r}")

    def report(self) -> dict[str, Any]:
        temporary = sorted(os.listdir(tempfile.gettempdir()))
        shared = sorted(set(os.listdir("/dev/shm")) - self.shared)
        return {
            "cycles": sum(self.counts.values()),
            "counts": dict(self.counts),
            "outlived": self.orphans,
            "processes": len(family()),
            "temporary": temporary,
            "shared": [name for name in shared if os.stat(f"/dev/shm/{name}").st_uid == os.geteuid()],
            "problems": self.problems,
        }


def command(words: list[str]) -> None:
    sys.argv = ["tunesmith", *words]
    tunesmith()


def family() -> list[int]:
    """Children of this process, adopted ones too."""
    reap()
    return [int(word) for task in Path("/proc/self/task").iterdir() for word in (task / "children").read_text().split()]


def reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def main(folder: Path, cycles: int, seed: int = 0) -> dict[str, Any]:
    (folder / "tmp").mkdir(parents=True)
    os.environ["TUNESMITH_KERNELS"] = "off"  # compiling them for a new home takes longer than any of this
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
    set_up(folder)
    made = Cycles(folder, seed)
    started = time.monotonic()
    swept = 0
    for number in range(cycles):
        kind = "ranks" if number % 25 == 24 else "serve" if number % 4 == 1 else "train"
        before = len(list((folder / "tmp").glob(f"{PREFIX}*")))
        turn = number // 25 if kind == "ranks" else number // 4 + number
        made.cycle(kind, list(STOPS)[(turn + 3) % 4], number)
        swept += before if kind == "ranks" else 0
        print(json.dumps(made.report()), file=sys.stderr, flush=True)
        if made.problems:
            break
    made.finish()
    return {**made.report(), "swept": swept, "seed": seed, "seconds": round(time.monotonic() - started, 1)}


if __name__ == "__main__":
    place, number, *rest = sys.argv[1:]
    print(json.dumps(main(Path(place), int(number), *map(int, rest))))
