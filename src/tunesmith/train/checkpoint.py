"""Checkpoints of a run: saved so that a kill at any moment is harmless, loaded only when every hash fits."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from tunesmith.errors import CheckpointError, Diagnostic, MachineError, Where
from tunesmith.faults import fault
from tunesmith.models.headers import read_header
from tunesmith.train import commit
from tunesmith.train.commit import TEMPORARY, Commit, Part, Tensors, Writers, is_unfinished, withdraw
from tunesmith.train.manifest import Broken, read_manifest, verify, versions
from tunesmith.train.stored import Stored


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint; `skipped` tells of the newer ones that are damaged."""

    step: int
    folder: Path
    manifest: dict[str, Any]
    state: dict[str, Any]
    skipped: tuple[Diagnostic, ...] = ()

    def tensors(self, stem: str) -> dict[str, Tensor]:
        """The tensors of `<stem>.safetensors`, on the CPU.

        CheckpointError when there is no such file, ModelError E082 when it is none of safetensors.
        """
        return safetensors.torch.load_file(self._file(stem))

    def stored(self, stem: str) -> Stored:
        """The same, of which none is in memory before it is asked for."""
        return Stored(self._file(stem))

    def _file(self, stem: str) -> Path:
        name = f"{stem}.safetensors"
        if name not in self.manifest["files"]:
            here = sorted(self.manifest["files"])
            raise CheckpointError("E113", f"the checkpoint has no {name}", where=Where(str(self.folder)), evidence=here)
        read_header(self.folder / name)  # a hash says only that nobody changed the file by accident
        return self.folder / name

    def part(self, rank: int) -> Part | None:
        """What `rank` added; None when fewer ranks wrote the checkpoint."""
        if rank >= self.manifest["world"]["ranks"]:
            return None
        try:
            state = _read_state(self.folder / f"rank{rank}.json")
        except Broken as broken:
            raise CheckpointError(
                "E111", f"checkpoint step-{self.step}: {broken}", where=Where(str(self.folder))
            ) from None
        return Part(self.tensors(f"rank{rank}"), state)


def _read_state(path: Path) -> dict[str, Any]:
    """The object in a file that was verified; Broken when it holds none."""
    try:
        state = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        raise Broken(f"{path.name} is not JSON") from None
    if not isinstance(state, dict):
        raise Broken(f"{path.name} holds no object")
    return state


def other_versions(checkpoint: Checkpoint) -> Diagnostic | None:
    """The warning W465 where the checkpoint was saved by other versions of what the last bit depends on."""
    here, there = versions(), checkpoint.manifest["versions"]
    changed = [f"{name} {there.get(name)} -> {here[name]}" for name in here if there.get(name) != here[name]]
    if not changed:
        return None
    words = f"step {checkpoint.step} was saved by other versions ({', '.join(changed)})"
    message = f"{words}: the run goes on, and need not equal an uninterrupted one to the bit"
    return Diagnostic("W465", message, "warning", Where(str(checkpoint.folder)))


def other_ranks(checkpoint: Checkpoint, ranks: int) -> Diagnostic | None:
    """The warning W525 where another number of ranks goes on than saved the checkpoint."""
    saved = checkpoint.manifest["world"]["ranks"]
    if saved == ranks:
        return None
    words = f"step {checkpoint.step} was saved by {counted(saved)}, and {counted(ranks)} will go on"
    message = f"{words}: the examples come in the same order, and the run need not equal one of {saved} to the bit"
    return Diagnostic("W525", message, "warning", Where(str(checkpoint.folder)))


def counted(ranks: int) -> str:
    return f"{ranks} rank{'s' * (ranks != 1)}"


class CheckpointStore:
    """The checkpoints of one run in `folder`: the newest `keep` (at least 2) valid ones and the best one stay."""

    def __init__(self, folder: Path, keep: int = 2, writers: Writers | None = None, *, in_place: bool = False) -> None:
        """`in_place`: write checkpoints under their own names, the manifest last, and rename no folder."""
        self.folder = folder
        self._in_place = in_place
        self._keep = max(2, keep)
        self._writers = writers or Writers()
        self._verified: dict[int, list[tuple[str, int, int]]] = {}

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, newest first; whether they verify is another question."""
        if not self.folder.is_dir():
            return []
        try:
            names = [re.fullmatch(r"step-(\d+)", name) for name in os.listdir(self.folder)]
        except OSError as error:
            raise MachineError("E115", f"cannot list {self.folder}: {error.strerror}") from error
        found = [int(name[1]) for name in names if name and not is_unfinished(self.folder / name[0])]
        return sorted(found, reverse=True)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies, None when none was ever saved; CheckpointError when all are damaged."""
        skipped: list[Diagnostic] = []
        for step in self.steps():
            try:
                return self._open(step, skipped)
            except Broken as broken:
                where = Where(str(self._path(step)))
                skipped.append(Diagnostic("W110", f"checkpoint step-{step} is skipped: {broken}", "warning", where))
        if skipped:
            raise CheckpointError(
                "E110",
                "no checkpoint of this run can be used, and starting again from step 0 is never done silently",
                where=Where(str(self.folder)),
                evidence=[each.message for each in skipped],
                fixes=("restore one of these folders from a backup", "start again as a new run in another folder"),
                others=skipped,
            )
        return None

    def best(self) -> Checkpoint | None:
        """The newest valid checkpoint that was saved or marked as the best."""
        for step in self.steps():
            if self._marked_best(step):
                try:
                    return self._open(step)
                except Broken:
                    continue
        return None

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of `step`; CheckpointError when it is missing or damaged."""
        try:
            return self._open(step)
        except Broken as broken:
            where = Where(str(self._path(step)))
            raise CheckpointError("E111", f"checkpoint step-{step}: {broken}", where=where) from None

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensors],
        state: Mapping[str, Any],
        *,
        own: Part | None = None,
        best: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> Path:
        """Commit the state after `step` and return its folder; every rank calls it, rank 0 writes what is shared.

        `tensors` maps a file stem to its tensors, `state` is strict JSON, `own` is this rank's part; `about` (examples,
        tokens, data, config) goes into the manifest. A valid checkpoint of the same step stays; `best` then marks it.
        MachineError when the disk refuses: the older checkpoints stay as they are.
        """
        fault("ckpt.begin", step)
        lead = self._writers.lead
        saving = Commit(self.folder, step, self._writers, in_place=self._in_place)
        present = self._present(step) if lead else None
        if not self._writers.agree(present is None):
            saving.together(lambda: saving.mark_best(present or {}) if best else None)
            return saving.final
        mine = own or Part()
        shared = dict(tensors) if lead else {}
        size = sum(tensor.nbytes for file in (*shared.values(), mine.tensors) for tensor in file.values())
        saving.together(lambda: saving.stage(self._last_size(), size))
        saving.together(lambda: saving.write(shared, state if lead else None, mine), lead_only=False)
        saving.together(lambda: saving.seal({"best": best, **(about or {})}))
        saving.together(saving.publish)
        saving.together(lambda: self._prune(step))
        fault("ckpt.end", step)
        return saving.final

    def clean(self) -> list[str]:
        """Remove what killed saves left behind, and return the names; only the owner of the run's lock may call it."""
        try:
            return commit.clean(self.folder)
        except OSError as error:
            raise MachineError("E115", f"cannot remove {error.filename}: {error.strerror}") from error

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step}"

    def _open(self, step: int, skipped: list[Diagnostic] | None = None) -> Checkpoint:
        folder = self._path(step)
        manifest = verify(folder, step)
        state = _read_state(folder / "state.json")
        return Checkpoint(step, folder, manifest, state, tuple(skipped or ()))

    def _present(self, step: int) -> dict[str, Any] | None:
        """The manifest of a valid checkpoint of `step`; a damaged one will be replaced."""
        if not os.path.lexists(self._path(step)):
            return None
        try:
            return verify(self._path(step), step)
        except Broken:
            return None

    def _last_size(self) -> int:
        for step in self.steps():
            try:
                return sum(entry["size"] for entry in read_manifest(self._path(step))["files"].values())
            except Broken:
                continue
        return 0

    def _prune(self, saved: int) -> None:
        """Remove what is older than the newest `keep` valid ones and not the best; damaged newer ones stay."""
        fault("ckpt.before_prune", saved)
        kept: set[int] = set()
        valid = 0
        best_found = False
        for step in self.steps():
            if valid < self._keep:
                kept.add(step)
                valid += step == saved or self._valid(step)
            if not best_found and self._marked_best(step) and (step == saved or self._valid(step)):
                best_found = True
                kept.add(step)
        for step in self.steps():
            if step not in kept:
                fault("ckpt.mid_prune", saved)
                self._remove(step, saved)
        fault("ckpt.after_prune", saved)

    def _remove(self, step: int, saved: int) -> None:
        if self._in_place:
            withdraw(self._path(step), saved)
            return
        # renamed first, so that a kill in the middle never leaves half a checkpoint under its own name
        aside = self.folder / f"{TEMPORARY}old-step-{step}-{self._writers.token}"
        self._path(step).rename(aside)
        fault("ckpt.mid_remove", saved, aside)
        commit.remove(aside)

    def _marked_best(self, step: int) -> bool:
        try:
            return bool(read_manifest(self._path(step)).get("best"))
        except Broken:
            return False

    def _valid(self, step: int) -> bool:
        """Whether the checkpoint verifies; it is hashed again only when the size or time of a file changed."""
        folder = self._path(step)
        try:
            seen = sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in os.scandir(folder))
            if self._verified.get(step) != seen:
                verify(folder, step)
                self._verified[step] = seen
        except (Broken, OSError):
            return False
        return True
