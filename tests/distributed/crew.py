"""Ranks as forks of one process that has torch: started under the real supervisor, each with faults of its own."""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tests.e2e.attempts import make_inputs, tiny_recipe

from tunesmith import faults
from tunesmith.distributed.ending import Ended
from tunesmith.distributed.launch import Launch
from tunesmith.distributed.launched import FOLDER, leave_word, name_run
from tunesmith.distributed.mesh import Mesh, join_world
from tunesmith.errors import Diagnostic, TunesmithError
from tunesmith.recipe import Recipe
from tunesmith.run import execute
from tunesmith.track.progress import NoProgress
from tunesmith.track.run_dir import RunDir

Work = Callable[[Mesh], object]


class Forked:
    """A rank that is a fork; what the supervisor asks of a process."""

    def __init__(self, work: Callable[[], None], log: Path) -> None:
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            os._exit(outcome(work))

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code


def outcome(work: Callable[[], None]) -> int:
    """The exit code of a rank's work, its error left for the launcher."""
    try:
        work()
    except TunesmithError as error:
        leave_word(error.exit_code, error.diagnostics)
        return error.exit_code
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException as error:
        sys.stderr.write(traceback.format_exc())
        leave_word(1, [Diagnostic("E029", f"{type(error).__name__}: {error}")])
        return 1
    return 0


def launch(folder: Path, work: Work, *, ranks: int = 2, hang_seconds: float = 60.0) -> Launch:
    """A launch of forks in `folder`, which is new; the caller runs it."""
    folder.mkdir(parents=True)

    def begin(rank: int) -> Forked:
        def run() -> None:
            place = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, FOLDER: folder}
            os.environ.update({name: str(value) for name, value in place.items()})
            torch.set_num_threads(1)
            mesh = join_world(60)
            work(mesh)
            mesh.close()

        return Forked(run, folder / f"rank{rank}.log")

    return Launch(folder, ranks, begin, hang_seconds)


def training(recipe: Recipe | Mapping[int, Recipe], run: Path, armed: str = "") -> Work:
    """Work of a rank that trains `recipe` (or its own one) in `run` under the armed faults."""

    def work(mesh: Mesh) -> None:
        faults.arm(armed)
        own = recipe if isinstance(recipe, Recipe) else recipe[mesh.rank]
        if mesh.is_first:
            run.mkdir(parents=True, exist_ok=True)
            name_run(run)
        mesh.barrier()
        execute(own, RunDir(run), mesh, NoProgress())

    return work


@contextmanager
def surroundings(folder: Path) -> Iterator[Recipe]:
    """A home of its own, tiny model and data made in a fork (this process stays one to fork from), and a recipe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_HOME", str(folder / "home"))
        patch.setenv("TUNESMITH_KERNELS", "off")  # compiling them for a new home takes longer than any of this
        made = inputs(folder)
        gc.collect()
        gc.freeze()  # else every fork copies all of it at its first garbage collection
        yield made
        gc.unfreeze()


def inputs(folder: Path) -> Recipe:
    made = Forked(lambda: make_inputs(folder), folder / "inputs.log")
    while made.poll() is None:
        time.sleep(0.01)
    assert made.poll() == 0, (folder / "inputs.log").read_text()
    return tiny_recipe(folder)


def evidence_of(ended: Ended) -> str:
    assert ended.error is not None
    return "\n".join(ended.error.diagnostic.evidence)


def own_listeners(pid: int) -> list[str]:
    """The addresses at which a process listens for TCP, in the hexadecimal form of /proc."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(link).removeprefix("socket:[").rstrip("]"))
        except OSError:  # closed meanwhile
            continue
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[3] == "0A" and row[9] in inodes]


LOOPBACK = ("0100007F:", "00000000000000000000000001000000:")
