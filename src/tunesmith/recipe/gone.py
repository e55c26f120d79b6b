"""Settings that a run was begun with, and that this version does not have any more."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import Diagnostic, Where
from tunesmith.track.files import read_object
from tunesmith.track.run_dir import RunDir

AT_DEFAULT = "at_default"  # in `run.json`: keys of the settings that had their default
SHOWN = 12


def is_of_run(file: Path) -> bool:
    """Whether a recipe is what a run keeps of its own."""
    run = RunDir(file.parent)
    return file.name == run.config_file.name and run.run_file.exists()


def told_gone(gone: Mapping[str, Any], file: Path) -> list[Diagnostic]:
    """The warning W553 of keys in a run's own recipe, unless all had their defaults."""
    if not gone:
        return []
    found = settings_gone(gone, read_object(RunDir(file.parent).run_file).get(AT_DEFAULT, ()), file)
    return [] if found is None else [found]


def settings_gone(gone: Mapping[str, Any], usual: Collection[str], file: Path) -> Diagnostic | None:
    """W553, unless all of them had their `usual` values, which change nothing."""
    set_then = [f"{key}: {value!r}" for key, value in sorted(gone.items()) if key not in usual]
    if not set_then:
        return None
    more = [f"and {len(set_then) - SHOWN} more"] if len(set_then) > SHOWN else []
    message = f"{len(set_then)} setting{'s' * (len(set_then) > 1)} of this run that this version does not have"
    evidence = (*set_then[:SHOWN], *more)
    return Diagnostic("W553", f"{message}: the run goes on without", "warning", Where(str(file)), evidence)
