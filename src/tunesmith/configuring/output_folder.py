"""Checks on the folder a run would be written to, made before anything is loaded; nothing is ever deleted."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tunesmith.errors import Fix, UsageError, Where


def check_output_folder(path: Path) -> None:
    """Refuse `/`, the home folder, a file, a folder that holds a run, and one that cannot be written (E019)."""
    where = Where(str(path), field="run.folder")
    target = path.expanduser().resolve()
    name_it = Fix("give the run another name: run.name=NAME")
    if target == Path(target.anchor) or target == Path.home().resolve():
        raise UsageError("E019", f"{target} is not a folder for a run", where=where, fixes=["run.folder=runs"])
    if target.exists() and not target.is_dir():
        raise UsageError("E019", f"{target} is a file", where=where, fixes=[name_it])
    if any((target / file).exists() for file in ("run.json", "status.json", "checkpoints")):
        resume = Fix("or continue it: tunesmith runs resume " + target.name)
        raise UsageError("E019", f"{target} already holds a run", where=where, fixes=[name_it, resume])
    existing = target
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        message = f"{existing} cannot be written: {error.strerror}"
        raise UsageError("E019", message, where=where, fixes=["run.folder=FOLDER you may write to"]) from error
