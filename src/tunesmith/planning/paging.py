"""Paged optimiser states, as a plan tells them, and what keeps them from being paged."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tunesmith.errors import Diagnostic, Fix, Where
from tunesmith.models.changing_config import LisaConfig
from tunesmith.models.inventory import Trainable
from tunesmith.models.quantized.bitsandbytes import is_installed
from tunesmith.planning.trunk import existing
from tunesmith.recipe import Recipe
from tunesmith.track.limits import read_text
from tunesmith.train.optimizers import AdamW, AdamW8bit
from tunesmith.train.optimizers.paging import is_paged

FIELD = "train.optimizer.paging"
FOLDER = "train.optimizer.paging_folder"
IN_MEMORY = frozenset(["tmpfs", "ramfs"])  # file systems that are no disk
OFF = Fix(f"{FIELD}=off", {FIELD: "off"}, effect="the states are in memory")


def can_page(recipe: Recipe, device: str) -> bool:
    """Whether there are states to page, and a way on such a device."""
    return next(_obstacles(recipe, device, "auto"), None) is None


def folder_of(recipe: Recipe) -> Path:
    return Path(recipe.train.optimizer.paging_folder or recipe.run.folder).expanduser().absolute()


def told_paging(recipe: Recipe, size: int, device: str) -> str:
    """Where the states wait, in a line."""
    words = f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
    if device == "cuda":
        return f"{words} of optimiser states move between the GPU and the host's memory"
    return f"{words} of optimiser states in a file in {folder_of(recipe)}, in memory those of one parameter at a time"


def paging_problems(recipe: Recipe, trained: Trainable, device: str, size: int) -> Iterator[Diagnostic]:
    """`size` is what the file of all ranks takes."""
    optimizer = recipe.train.optimizer
    if optimizer.paging == "off":
        if optimizer.paging_folder is not None:
            message = "a folder for paged states is named, and no states are paged"
            yield _refused(message, FOLDER, Fix(f"{FIELD}=auto", {FIELD: "auto"}), Fix("leave the folder out"))
        return
    found = next(_obstacles(recipe, device, optimizer.paging), None)
    if found is not None:
        yield found
        return
    shapes = trained.shapes
    if shapes and not any(is_paged(optimizer, *one, device) for one in shapes.items()):
        message = "the states of every trained tensor are too small to page: nothing is saved"
        yield Diagnostic("W303", message, "warning", Where(field=FIELD), fixes=(OFF,))
    elif device == "cpu":
        yield from _room(recipe, size)


def _obstacles(recipe: Recipe, device: str, paging: str) -> Iterator[Diagnostic]:
    """Why the states cannot be paged as is asked for, the first reason first."""
    optimizer, name = recipe.train.optimizer, "train.optimizer.name"
    if optimizer.state_bytes("", (256, 256)) == 0:
        message = f"{optimizer.name} without momentum has no states to page"
        yield _refused(message, FIELD, OFF, Fix(f"{name}=adamw", {name: "adamw"}))
    if device == "cpu":
        if sys.platform != "linux":
            yield _refused("states in a file need Linux, whose pages can be given back at once", FIELD, OFF)
        return
    if paging == "file":
        message = "states in a file are for a CPU; on a GPU they move between its memory and the host's"
        yield _refused(message, FIELD, Fix(f"{FIELD}=auto", {FIELD: "auto"}), OFF)
    if optimizer.paging_folder is not None:
        message = "on a GPU states are paged to the host's memory, and a folder has no use"
        yield _refused(message, FOLDER, Fix(f"{FOLDER}=null", {FOLDER: None}))
    if not isinstance(optimizer, AdamW | AdamW8bit):
        message = f"on a GPU states are paged by bitsandbytes, which has {optimizer.name} in no form that is used here"
        fixes = (Fix(f"{name}={word}", {name: word}) for word in ("adamw8bit", "adamw"))
        yield _refused(message, name, *fixes, OFF)
    if isinstance(recipe.model.adapter, LisaConfig):
        message = "LISA lets go of states as it draws other layers, and bitsandbytes keeps paged ones to the end"
        yield _refused(message, FIELD, OFF)
    if not is_installed():
        install = Fix("install it", command="pip install bitsandbytes")
        message = "on a GPU states are paged by bitsandbytes, which is not installed"
        yield Diagnostic("E305", message, where=Where(field=FIELD), fixes=(install, OFF))


def _refused(message: str, field: str, *fixes: Fix) -> Diagnostic:
    return Diagnostic("E306", message, where=Where(field=field), fixes=fixes)


def _room(recipe: Recipe, size: int) -> Iterator[Diagnostic]:
    folder = existing(folder_of(recipe))
    free = shutil.disk_usage(folder).free
    elsewhere = Fix(f"{FOLDER}=FOLDER on a larger disk")
    if size > free:
        need, there = (f"{count / 1e9:,.2f} GB" for count in (size, free))
        message = f"the optimiser's states take {need}, and {there} are free at {folder}"
        smaller = {"train.optimizer.name": "adamw8bit"}
        eighth = [Fix("train.optimizer.name=adamw8bit", smaller)] if recipe.train.optimizer.name == "adamw" else []
        yield Diagnostic("E304", message, where=Where(field=FIELD), fixes=(elsewhere, *eighth, OFF))
    if file_system(folder) in IN_MEMORY:
        message = f"{folder} is in memory itself: states in a file there save none"
        yield Diagnostic("W304", message, "warning", Where(field=FIELD), fixes=(elsewhere, OFF))


def file_system(folder: Path) -> str:
    """The type of the file system that a folder is on, as Linux names it; empty where it tells nothing."""
    best, kind, place = -1, "", folder.resolve()
    for line in read_text(Path("/proc/self/mounts")).splitlines():
        _, mount, name, *_ = line.split(" ")
        if place.is_relative_to(mount.replace("\\040", " ")) and len(mount) >= best:
            best, kind = len(mount), name
    return kind
