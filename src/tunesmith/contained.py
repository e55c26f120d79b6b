"""The files of a model folder: regular ones that lie in it. A link out of it would leak into what is published."""

from __future__ import annotations

import shlex
from pathlib import Path

from tunesmith.errors import Fix, Unsafe, Where
from tunesmith.regular import kind_of

READ = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")  # what is read of a model folder, and copied from it


def check_contained(folder: Path) -> None:
    """Unsafe E540 for a link that leaves the folder, E541 for a pipe or device, among the files that are read.

    The hub's cache keeps its files in `blobs`, beside the snapshots that lead to them: links to there are its own.
    """
    for path in sorted({path for pattern in READ for path in folder.glob(pattern)}):
        check_file(path)


def check_tree(folder: Path) -> None:
    """The same of everything in the folder, for one that is copied as a whole; a link to a folder is none of them."""
    for path in sorted(folder.rglob("*")):
        check_file(path)
        if path.is_symlink() and path.is_dir():
            raise refused(path, "a link to a folder")


def check_file(path: Path) -> Path:
    """The path itself, where it may be opened or where nothing is; a folder is left to what reads it."""
    if path.is_symlink() and not is_contained(path):
        target = path.resolve()
        raise Unsafe(
            "E540",
            f"{path.name} is a link that leaves its folder: what it leads to may be anybody's",
            where=Where(str(path)),
            evidence=[f"{path.name} -> {target}"],
            fixes=[
                Fix("remove the link", command=f"rm {shlex.quote(str(path))}"),
                "if the link is yours, put the file itself in its place",
            ],
        )
    if path.exists() and not path.is_dir():
        kind = kind_of(path.stat().st_mode)
        if kind is not None:
            raise refused(path, kind)
    return path


def is_contained(path: Path) -> bool:
    """Whether a file really lies in the folder that names it, or in the store of the hub's cache behind that."""
    folder, target = path.parent.resolve(), path.resolve()
    stores = [each.parent.parent / "blobs" for each in (folder, folder.parent) if each.parent.name == "snapshots"]
    return any(target.is_relative_to(place) for place in (folder, *stores))


def refused(path: Path, kind: str) -> Unsafe:
    return Unsafe(
        "E541",
        f"{path.name} is {kind}, not a file: reading it may never end",
        where=Where(str(path)),
        fixes=[Fix("remove it", command=f"rm {shlex.quote(str(path))}")],
    )
