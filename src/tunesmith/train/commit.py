"""The commit protocol: stage, write, agree, seal, rename; a kill at any moment leaves the old state or the new one.

Where renaming a folder is not one act (object stores, some network file systems) a checkpoint is written under its own
name, and the manifest, which comes last, makes it one.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from tunesmith.errors import MachineError, TunesmithError
from tunesmith.faults import fault
from tunesmith.train import durable
from tunesmith.train.manifest import FORMAT, MANIFEST, seal, versions

TEMPORARY = ".tmp-"
IN_PLACE = ".in-place"  # in a folder that is written under its own name: without a manifest it is no checkpoint
MARGIN = 1.2  # free space wanted, as a share of what will be written
ABOUT = ("examples", "tokens", "data", "config")

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank alone knows, such as its random generators; `state` is strict JSON."""

    tensors: Tensors = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Writers:
    """The processes that write one checkpoint together; by default this one alone.

    `agree(ok)` waits for all of them and is True when every one passed True. `token` must be the same on all.
    """

    rank: int = 0
    size: int = 1
    agree: Callable[[bool], bool] = bool
    token: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @property
    def lead(self) -> bool:
        return self.rank == 0


class Commit:
    """One checkpoint on its way to disk; every method is called by every rank, in the same order."""

    def __init__(self, folder: Path, step: int, writers: Writers, *, in_place: bool = False) -> None:
        self.final = folder / f"step-{step}"
        self._folder = folder
        self._step = step
        self._writers = writers
        self._in_place = in_place
        self._staging = self.final if in_place else folder / f"{TEMPORARY}step-{step}-{writers.token}"
        self._need = 0
        self._staged = self._published = False

    def together(self, action: Callable[[], object], *, lead_only: bool = True) -> None:
        """Do this rank's share of a phase; go on only when all ranks succeeded, else all of them raise MachineError."""
        failure: TunesmithError | None = None
        try:
            if self._writers.lead or not lead_only:
                action()
        except OSError as error:
            what = "the checkpoint is saved, but afterwards" if self._published else "the checkpoint is not saved"
            failure = durable.machine_error(error, f"step {self._step}: {what}", self._folder, self._need)
            failure.__cause__ = error
        fault("ckpt.before_barrier", self._step)
        agreed = self._writers.agree(failure is None)
        fault("ckpt.after_barrier", self._step)
        if not agreed and self._writers.lead and self._staged and not self._published:
            shutil.rmtree(self._staging, ignore_errors=True)
        if failure is not None:
            raise failure
        if not agreed:
            raise MachineError("E114", f"step {self._step}: the checkpoint is not saved, another rank could not write")

    def stage(self, last_size: int, size: int) -> None:
        """Make the staging folder, where there is room for more than the last checkpoint and this one."""
        fault("ckpt.before_stage", self._step)
        self._need = int(MARGIN * max(last_size, size))
        if not self._folder.is_dir():
            self._folder.mkdir(parents=True)
            durable.sync_folder(self._folder.parent)
        durable.require_space(self._folder, self._need)
        if self._in_place and os.path.lexists(self.final):
            withdraw(self.final, self._step)
        self._staging.mkdir()
        self._staged = True
        if self._in_place:
            durable.write_text(self._staging / IN_PLACE, "", self._step)
        fault("ckpt.after_stage", self._step)

    def write(self, shared: Mapping[str, Tensors], state: Mapping[str, Any] | None, own: Part) -> None:
        """Write what this rank contributes, then the list of it; only rank 0 has shared files and a `state`."""
        stem = f"rank{self._writers.rank}"
        files = {
            f"{name}.safetensors": durable.write_tensors(self._staging / f"{name}.safetensors", tensors, self._step)
            for name, tensors in {**shared, stem: own.tensors}.items()
        }
        states = {f"{stem}.json": own.state} | ({} if state is None else {"state.json": state})
        for name, value in states.items():
            files[name] = durable.write_json(self._staging / name, dict(value), self._step)
        listed = {name: asdict(entry) for name, entry in files.items()}
        durable.write_json(self._staging / f"{stem}.list", listed, self._step)

    def seal(self, about: Mapping[str, Any]) -> None:
        """Gather the lists of all ranks into the manifest."""
        files: dict[str, Any] = {}
        for rank in range(self._writers.size):
            listed = self._staging / f"rank{rank}.list"
            files |= json.loads(listed.read_text("utf-8"))
            listed.unlink()
        fault("ckpt.before_manifest", self._step)
        manifest = {
            **dict.fromkeys(ABOUT),
            **about,
            "format": FORMAT,
            "step": self._step,
            "world": {"ranks": self._writers.size},
            "versions": versions(),
            "files": files,
        }
        durable.write_text(self._staging / MANIFEST, seal(manifest), self._step)
        fault("ckpt.after_manifest", self._step)
        fault("ckpt.before_folder_fsync", self._step)
        durable.sync_folder(self._staging)
        fault("ckpt.after_folder_fsync", self._step, self._staging)

    def publish(self) -> None:
        """Give the sealed folder its own name, where it has not got it, and tell of it in `latest`."""
        if self._in_place:
            self._published = True
            durable.sync_folder(self._folder)
        else:
            self._rename()
        fault("ckpt.before_latest", self._step)
        self._replace(self._folder / "latest", f"{self.final.name}\n")
        fault("ckpt.after_latest", self._step)

    def _rename(self) -> None:
        """A damaged checkpoint of the same step makes way."""
        bad = self._folder / f"{TEMPORARY}bad-{self.final.name}-{self._writers.token}"
        if os.path.lexists(self.final):
            fault("ckpt.before_set_aside", self._step)
            self.final.rename(bad)
            fault("ckpt.after_set_aside", self._step)
        fault("ckpt.before_rename", self._step)
        self._staging.rename(self.final)
        self._published = True
        fault("ckpt.after_rename", self._step, self.final)
        durable.sync_folder(self._folder)
        fault("ckpt.after_parent_fsync", self._step, self.final)
        remove(bad)

    def mark_best(self, manifest: Mapping[str, Any]) -> None:
        """Set `best` in the manifest of the checkpoint that is already there."""
        self._published = True
        if not manifest["best"]:
            fault("ckpt.before_mark_best", self._step)
            self._replace(self.final / MANIFEST, seal({**manifest, "best": True}))
            fault("ckpt.after_mark_best", self._step)

    def _replace(self, path: Path, text: str) -> None:
        temporary = self._folder / f"{TEMPORARY}{path.name}-{self._writers.token}"
        temporary.unlink(missing_ok=True)
        durable.write_text(temporary, text, self._step)
        fault("ckpt.before_replace", self._step, path)
        os.replace(temporary, path)
        durable.sync_folder(path.parent)


def clean(folder: Path) -> list[str]:
    """Remove what killed saves left in `folder`, and return the names; only the owner of the run's lock may do this."""
    fault("ckpt.before_clean")
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    left_over = [path for path in there if path.name.startswith(TEMPORARY) or is_unfinished(path)]
    for path in left_over:
        remove(path)
        fault("ckpt.mid_clean")
    fault("ckpt.after_clean")
    return [path.name for path in left_over]


def is_unfinished(folder: Path) -> bool:
    """Whether a save in place ended before its manifest, or what it made is being removed."""
    return os.path.lexists(folder / IN_PLACE) and not os.path.lexists(folder / MANIFEST)


def withdraw(folder: Path, step: int) -> None:
    """Remove a checkpoint that cannot be renamed first: from its first file on it is none any more."""
    fault("ckpt.before_set_aside", step)
    if folder.is_dir() and not folder.is_symlink():
        (folder / IN_PLACE).touch()
        (folder / MANIFEST).unlink(missing_ok=True)
        durable.sync_folder(folder)
    fault("ckpt.after_set_aside", step)
    remove(folder)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there; what says that it is unfinished goes last."""
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            if inner.name != IN_PLACE:
                remove(inner)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
