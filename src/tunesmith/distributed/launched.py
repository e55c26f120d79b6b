"""The side of a rank that our own launcher started: where it finds its place and leaves its last words."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from tunesmith.errors import Diagnostic

FOLDER = "TUNESMITH_RANKS"  # where launcher and ranks leave each other word
LAUNCHER = "TUNESMITH_LAUNCHER"  # the number of its process
STACKS = signal.SIGUSR2


def launch_folder() -> Path | None:
    """The folder shared with the launcher; None where another one, or nobody, started this process."""
    named = os.environ.get(FOLDER)
    return Path(named) if named else None


def launcher() -> int:
    """The process that started this one, also when it was gone before anybody asked."""
    named = os.environ.get(LAUNCHER, "")
    return int(named) if named.isdigit() else os.getppid()


def is_rank() -> bool:
    """Whether a launcher, ours or torchrun, made this process one of several."""
    return "WORLD_SIZE" in os.environ


def own_rank() -> str:
    return os.environ.get("RANK", "0")


def answer_stack_requests(folder: Path) -> None:
    """Write the stack of every thread to `rank<n>.stack` at every SIGUSR2, wherever the process is."""
    file = (folder / f"rank{own_rank()}.stack").open("ab", buffering=0)
    faulthandler.register(STACKS, file=file, all_threads=True)


def leave_word(exit_code: int, diagnostics: Iterable[Diagnostic]) -> bool:
    """Hand an error to our launcher, which tells it once for all ranks; False when there is none."""
    folder = launch_folder()
    if folder is None:
        return False
    content = {"code": exit_code, "diagnostics": [asdict(each) for each in diagnostics]}
    temporary = folder / f"rank{own_rank()}.part"
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(folder / f"rank{own_rank()}.error")
    return True


def name_run(path: Path) -> None:
    """Tell the launcher which directory the run has."""
    folder = launch_folder()
    if folder is not None:
        (folder / "run").write_text(str(path.absolute()), encoding="utf-8")
