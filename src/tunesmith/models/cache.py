"""Folders of converted models under home(): locked while made, renamed when whole, checked at every use."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.errors import Fix, MachineError, Where
from tunesmith.paths import home

MANIFEST = "tunesmith-manifest.json"
Progress = Callable[[str, float], None]


def silent(phase: str, share: float) -> None:
    """A progress callback that shows nothing."""


@contextmanager
def locked(path: Path, progress: Progress = silent) -> Iterator[None]:
    """One process at a time; the lock goes with the process that holds it, however that ends."""
    make_folder(path.parent)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process", 0.0)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(path, error) from error
    return path


def not_writable(path: Path, error: OSError) -> MachineError:
    fixes = [Fix("choose another folder", command="export TUNESMITH_HOME=/folder/with/space")]
    return MachineError("E173", f"{path} cannot be written: {error.strerror}", where=Where(str(path)), fixes=fixes)


def require_space(folder: Path, need: int, doing: str) -> None:
    """MachineError E174 when the disk of `folder` has less than `need` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise MachineError(
            "E174",
            f"{doing} needs {need / 1e9:.1f} GB on disk, {free / 1e9:.1f} GB are free",
            where=Where(str(folder)),
            fixes=["free some space", Fix("choose another folder", command="export TUNESMITH_HOME=/folder/with/space")],
        )


def made_once(folder: Path, make: Callable[[Path], None], progress: Progress | None) -> Path:
    """The folder, which `make` fills at its first use: by one process at a time, and wholly or not at all."""
    if is_intact(folder):
        return folder
    with locked(folder.parent / f".{folder.name}.lock", progress or silent):
        if not is_intact(folder):
            remove_left_overs(folder)
            with staged(folder) as stage:
                make(stage)
    return folder


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place when the block ends well, and vanishes when it does not."""
    make_folder(folder.parent)
    stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield stage
        write_manifest(stage)
        if folder.exists():
            shutil.rmtree(folder)
        stage.chmod(0o755)
        stage.rename(folder)
    finally:
        if stage.exists():
            shutil.rmtree(stage)


def remove_left_overs(folder: Path) -> None:
    """Delete what a killed process staged for `folder`; only under its lock."""
    for stage in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(stage)


def write_manifest(folder: Path) -> None:
    """Record size, time and sha256 of every file; synced, so that the manifest vouches for what is on disk."""
    files = {path.name: _entry(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != MANIFEST}
    for name in files:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({"schema": 1, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _entry(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": digest(path)}


def is_intact(folder: Path) -> bool:
    """Sizes and times as recorded; a file with the size but another time is hashed once."""
    recorded = _read_manifest(folder)
    if not recorded:
        return False
    copied = False
    for name, entry in recorded.items():
        try:
            status = (folder / name).stat()
        except OSError:
            return False
        if status.st_size != entry["size"]:
            return False
        if status.st_mtime_ns != entry["mtime_ns"]:
            if digest(folder / name) != entry["sha256"]:
                return False
            copied = True
    if copied and os.access(folder, os.W_OK):
        write_manifest(folder)
    return True


def damaged_files(folder: Path) -> list[str]:
    """Names of the files whose sha256 is not the recorded one; reads everything."""
    recorded = _read_manifest(folder)
    if not recorded:
        return [MANIFEST]
    return [
        name
        for name, entry in recorded.items()
        if not (folder / name).is_file() or digest(folder / name) != entry["sha256"]
    ]


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return {name: {key: entry[key] for key in ("size", "mtime_ns", "sha256")} for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def digest(path: Path, progress: Progress = silent, phase: str = "check") -> str:
    """sha256 of a file, as text."""
    total, done = max(path.stat().st_size, 1), 0
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(4 * 1024 * 1024):
            state.update(chunk)
            done += len(chunk)
            progress(phase, done / total)
    return state.hexdigest()


def remembered_digest(path: Path) -> str:
    """sha256 of a large file, kept under home() as long as its size and time stay the same."""
    status = path.stat()
    identity = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    note = home() / "digests" / hashlib.sha256(identity.encode()).hexdigest()[:32]
    if note.is_file():
        known = note.read_text(encoding="ascii").strip()
        if len(known) == 64:
            return known
    found = digest(path)
    make_folder(note.parent)
    note.write_text(found, encoding="ascii")
    return found
