"""What Tunesmith keeps under home() and makes again when it is missing: how large it is, and what is old of it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.paths import home

CACHES = ("prepared", "reference", "trunk", "models")
PRUNED = ("prepared", "reference", "trunk")  # models may have to be fetched again
DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Cache:
    """One folder of caches: its name, its entries, their bytes on disk."""

    name: str
    entries: int
    bytes: int


def caches() -> list[Cache]:
    """Every kind of cache, empty ones too."""
    found = []
    for name in CACHES:
        entries = list(folders(name))
        found.append(Cache(name, len(entries), sum(size_of(path) for path in entries)))
    return found


def prune(days: float) -> list[Cache]:
    """Remove what nothing has written for so many days, but no models; what was freed."""
    before, freed = time.time() - days * DAY, []
    for name in PRUNED:
        old = [path for path in folders(name) if newest(path) < before]
        sizes = [size_of(path) for path in old]
        for path in old:
            shutil.rmtree(path, ignore_errors=True)
        freed.append(Cache(name, len(old), sum(sizes)))
    return freed


def folders(name: str) -> Iterator[Path]:
    folder = home() / name
    if folder.is_dir():
        yield from (path for path in sorted(folder.iterdir()) if path.is_dir() and not path.is_symlink())


def files(folder: Path) -> Iterator[os.stat_result]:
    """Everything below a folder that is still there when it is looked at, links as links."""
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                yield os.lstat(Path(place, name))
            except FileNotFoundError:
                continue


def size_of(folder: Path) -> int:
    """Bytes on disk: files with holes count what they hold."""
    return sum(status.st_blocks * 512 for status in files(folder))


def newest(folder: Path) -> float:
    """When anything of a folder was last written."""
    return max((status.st_mtime for status in files(folder)), default=folder.stat().st_mtime)
