"""The manifest of a checkpoint: what it holds, with a hash for every file and for itself."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch

import tunesmith
from tunesmith.regular import open_regular, read_regular
from tunesmith.track.files import LARGEST
from tunesmith.train.durable import to_json

PACKAGE = Path(__file__).parents[1]
CODE = ("*.py", "*.cpp", "*.h")
MANIFEST = "manifest.json"
FORMAT = 1


class Broken(Exception):
    """A committed folder that does not verify; the text says which file and why."""


def seal(manifest: dict[str, Any]) -> str:
    """The text of a manifest, with a checksum over the rest of it, so that no byte of it can change unnoticed."""
    body = {key: value for key, value in manifest.items() if key != "checksum"}
    return to_json({**body, "checksum": hashlib.sha256(to_json(body).encode()).hexdigest()})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a committed folder, its own checksum verified; Broken says what is wrong."""
    path = folder / MANIFEST
    try:
        text = read_regular(path, LARGEST).decode()
        manifest = json.loads(text)
        sealed = isinstance(manifest, dict) and seal(manifest) == text
    except FileNotFoundError:
        raise Broken(f"{MANIFEST} is missing") from None
    except OSError as error:
        raise Broken(f"{MANIFEST} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):  # also numbers of thousands of digits, and NaN
        raise Broken(f"{MANIFEST} is damaged: it is not JSON") from None
    if not sealed:
        raise Broken(f"{MANIFEST} is damaged: its checksum does not match")
    if manifest.get("format") != FORMAT:
        raise Broken(f"its format is {manifest.get('format')!r}; this version reads {FORMAT}")
    if fault := _misshape(manifest):
        raise Broken(f"{MANIFEST} is no manifest: {fault}")
    return manifest


def _misshape(manifest: Mapping[str, Any]) -> str | None:
    """What a manifest lacks that every one has, or None; its checksum says only that nobody changed it by accident."""
    files, world = manifest.get("files"), manifest.get("world")
    if type(manifest.get("step")) is not int:
        return "step is no whole number"
    if not isinstance(files, dict) or not all(map(_is_entry, files.values())):
        return "files does not give each a size and a sha256"
    named = manifest.get("versions")
    if not isinstance(named, dict) or not all(isinstance(value, str) for value in named.values()):
        return "versions does not name each by a text"
    ranks = world.get("ranks") if isinstance(world, dict) else None
    if type(ranks) is not int or not 0 < ranks <= len(files):
        return "world does not say how many ranks wrote it"
    wanted = ["state.json", *(f"rank{rank}.{ending}" for rank in range(ranks) for ending in ("json", "safetensors"))]
    missing = next((name for name in wanted if name not in files), None)
    return f"it lists no {missing}" if missing else None


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and type(entry.get("size")) is int and isinstance(entry.get("sha256"), str)


def verify_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare every listed file with its size and hash; Broken names the first file that differs."""
    for name, entry in files.items():
        path = folder / name
        if Path(name).name != name:
            raise Broken(f"{MANIFEST} lists {name!r}, which is no plain file name")
        try:
            size = path.stat().st_size
            if size != entry["size"]:
                raise Broken(f"{name} has {size:,} bytes instead of {entry['size']:,}")
            with open_regular(path) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise Broken(f"{name} is missing") from None
        except OSError as error:
            raise Broken(f"{name} cannot be read: {error.strerror}") from None
        if found != entry["sha256"]:
            raise Broken(f"{name} is damaged: its sha256 is {found[:12]}... instead of {entry['sha256'][:12]}...")


def verify(folder: Path, step: int) -> dict[str, Any]:
    """The manifest of the checkpoint of `step` once every file of it fits; Broken says what does not."""
    manifest = read_manifest(folder)
    if manifest["step"] != step:
        raise Broken(f"{MANIFEST} is of step {manifest['step']}")
    verify_files(folder, manifest["files"])
    return manifest


def versions() -> dict[str, str]:
    """Versions that bitwise equality after a resume depends on."""
    return {
        "tunesmith": tunesmith.__version__,
        "code": code_hash(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "safetensors": safetensors.__version__,
    }


@functools.cache
def code_hash() -> str:
    """A hash of the package's own sources."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in CODE for path in PACKAGE.rglob(pattern)):
        digest.update(f"{path.relative_to(PACKAGE)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
