"""A folder that is written whole or not at all, in a place that was free."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith.errors import Fix, MachineError, UsageError, Where


@contextmanager
def staged(out: Path, what: str) -> Iterator[Path]:
    """A hidden folder beside `out` that takes its name at the end; nothing is left behind when something fails.

    UsageError E157 when the place is taken, MachineError E158 (`what` cannot be written) for a full disk.
    """
    check_target(out)
    stage = out.with_name(f".tmp-{out.name}-{uuid.uuid4().hex[:8]}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield stage
        if out.exists():
            out.rmdir()
        os.replace(stage, out)
    except OSError as error:
        message = f"{what} cannot be written: {error.strerror or error}"
        fixes = ["free some space, or choose another folder"]
        raise MachineError("E158", message, where=Where(str(out)), fixes=fixes) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def check_target(out: Path) -> None:
    """UsageError E157 when the place is taken; an empty folder is not."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UsageError(
            "E157",
            f"{out} already holds something",
            where=Where(str(out)),
            fixes=[Fix("give the name of a new folder")],
        )
