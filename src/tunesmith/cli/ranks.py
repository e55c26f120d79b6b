"""Several ranks of this machine: planned and asked about once, started, watched, and started again when one fails."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

import typer

from tunesmith.cli.output import fail, show
from tunesmith.distributed.launched import FOLDER, LAUNCHER, is_rank

if TYPE_CHECKING:
    from tunesmith.distributed.ending import Ended
    from tunesmith.distributed.word import Word
    from tunesmith.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Words:
    """The command of a rank, after `tunesmith train`."""

    name: str
    overrides: Sequence[str]
    flags: Sequence[str] = ()

    def argv(self, run: Path | None) -> list[str]:
        resume = [] if run is None else ["--resume", str(run)]
        own = [sys.executable, "-P", "-m", "tunesmith", "train", "--yes", "--force"]
        return [*own, *self.flags, *resume, "--", self.name, *self.overrides]


def wants_launch(recipe: Recipe) -> bool:
    """Whether this process is to start ranks; UsageError E502 where another launcher started a different number."""
    from tunesmith.errors import Fix, UsageError, Where

    wanted, given = recipe.run.ranks, os.environ.get("WORLD_SIZE", "1")
    if not is_rank() or wanted == 1:
        return wanted > 1
    if given != str(wanted):
        message = f"run.ranks={wanted}, but the launcher started {given} ranks"
        fixes = [Fix(f"run.ranks={given}", {"run.ranks": given}), Fix("start without torchrun: tunesmith train")]
        raise UsageError("E502", message, where=Where(field="run.ranks"), fixes=fixes)
    return False


def check_devices(recipe: Recipe) -> None:
    """UsageError E502 where a rank would have no GPU of its own."""
    import torch

    from tunesmith.errors import Fix, UsageError, Where

    count = torch.cuda.device_count()
    if count and recipe.run.ranks > count:
        message = f"{recipe.run.ranks} ranks are wanted, {count} GPUs are here"
        fixes = [Fix(f"run.ranks={count}", {"run.ranks": count})]
        raise UsageError("E502", message, where=Where(field="run.ranks"), fixes=fixes)


def lead(recipe: Recipe, words: Words, resumed: Path | None, *, as_json: bool) -> None:
    """Run all ranks to their end, in the directory `resumed` if there is one.

    Leaves with the code of the rank that failed first, whose error is told first.
    """
    from tunesmith.distributed.word import shared_folder

    with shared_folder() as word:
        ended = attempts(recipe, words, resumed, word)
    if ended.error is not None:
        fail(ended.error, as_json=as_json)
        raise typer.Exit(ended.code)


def attempts(recipe: Recipe, words: Words, resumed: Path | None, word: Word) -> Ended:
    """Attempts until one ends for good, each with a folder of its own in that of the launch."""
    from tunesmith.distributed.launch import Launch, supervise
    from tunesmith.track.run_dir import is_run

    settings = recipe.run
    runs = [] if resumed is None else [resumed]

    def attempt(number: int) -> Ended:
        own = word.path / f"attempt-{number}"
        own.mkdir()
        argv = words.argv(runs[-1] if runs and is_run(runs[-1]) else None)
        rank_of = Start(argv, own, settings.ranks, word.descriptor)
        ended = Launch(own, settings.ranks, rank_of.begin, settings.hang_seconds).run()
        if (own / "run").exists():
            runs.append(Path((own / "run").read_text("utf-8")))
        return ended if ended.error is None or not runs else noted(ended, runs[-1])

    def told(ended: Ended, number: int) -> None:
        from tunesmith.errors import Diagnostic

        assert ended.error is not None
        first = ended.error.diagnostic
        message = f"{first.message}; starting again ({number} of {settings.max_restarts})"
        show(Diagnostic("W467", message, "warning", evidence=first.evidence))

    return supervise(attempt, settings.max_restarts, told)


@dataclass(frozen=True, slots=True)
class Start:
    """How the ranks of an attempt are started; each holds the descriptor that keeps the folder."""

    argv: list[str]
    folder: Path
    ranks: int
    held: int

    def begin(self, rank: int) -> subprocess.Popen[bytes]:
        """Start one rank in a session of its own; the first speaks on our terminal, the others into files."""
        if rank == 0:
            return self.popen(rank, None)
        with (self.folder / f"rank{rank}.log").open("ab") as log:
            return self.popen(rank, log)

    def popen(self, rank: int, log: IO[bytes] | None) -> subprocess.Popen[bytes]:
        threads = str(max(1, (os.cpu_count() or 1) // self.ranks))
        own = {FOLDER: str(self.folder), LAUNCHER: str(os.getpid())}
        own |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.ranks)}
        return subprocess.Popen(
            self.argv,
            env={"OMP_NUM_THREADS": threads, **os.environ, **own},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(self.held,),
        )


def noted(ended: Ended, path: Path) -> Ended:
    """Put the end into the run's directory, which no living process owns any more."""
    from tunesmith.distributed.ending import with_evidence
    from tunesmith.errors import TunesmithError
    from tunesmith.track.files import replace_text, to_json
    from tunesmith.track.metrics import JsonLines
    from tunesmith.track.run_dir import RunDir, is_run

    if ended.code in (75, 130) or not is_run(path) or ended.error is None:
        return ended
    run = RunDir(path)
    try:
        with run.lock():
            error = ended.error
            if ended.stacks:
                error = with_evidence(error, [f"stacks of all ranks: {run.crash(ended.stacks)}"])
            about = {"step": ended.step, "rank": ended.rank, "diagnostic": error.diagnostic.to_json()}
            JsonLines(run.events_file).write({"event": "rank_failed", **about})
            status = run.read_status()
            replace_text(run.status_file, to_json(replace(status, state="failed", exit_code=ended.code).to_json()))
    except TunesmithError as told:  # the first error counts; that it could not be kept is told with it
        return replace(ended, error=with_evidence(ended.error, [f"not kept: {told.diagnostic.message}"]))
    return replace(ended, error=error)
