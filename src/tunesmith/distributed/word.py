"""The folder where a launcher and its ranks leave each other word: it is there as long as one of them is."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PREFIX = "tunesmith-ranks-"


@dataclass(frozen=True, slots=True)
class Word:
    """`path`, and a descriptor whose lock says that somebody needs it; the ranks inherit it.

    The kernel gives the lock back when the last process that has the descriptor is gone, however it ended.
    """

    path: Path
    descriptor: int


@contextmanager
def shared_folder() -> Iterator[Word]:
    """A new folder for the launch inside `with`; folders of launches of which nobody is left go first."""
    sweep()
    word = locked_folder()
    try:
        yield word
    finally:
        shutil.rmtree(word.path, ignore_errors=True)
        os.close(word.descriptor)


def locked_folder() -> Word:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(OSError):  # where folders cannot be locked nothing is swept either
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        if path.exists():
            return Word(path, descriptor)
        os.close(descriptor)  # another launcher swept it before it was locked


def sweep() -> list[Path]:
    """Remove our user's folders that no living process holds; those removed."""
    swept = []
    for path in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # of another user, a link, or gone
            continue
        try:
            if os.fstat(descriptor).st_uid == os.geteuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
                swept.append(path)
        except OSError:  # somebody holds it
            continue
        finally:
            os.close(descriptor)
    return swept
