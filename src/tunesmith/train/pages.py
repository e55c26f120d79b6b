"""States of an optimiser in a file: those of one parameter at a time are in memory."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tunesmith.errors import Fix, MachineError, Where
from tunesmith.track.files import PLAIN
from tunesmith.train.optimizers import OptimizerConfig
from tunesmith.train.optimizers.base import State
from tunesmith.train.optimizers.paging import SMALLEST, file_bytes

FIELD = "train.optimizer.paging"
PIECE = 2**20  # numbers
ALIGNED = 64  # bytes at whose multiples tensors begin


class Page:
    """The states of one parameter: a part of the file that is mapped.

    What is read or written there is in the kernel's cache of the file; `drop` takes it out of this process's memory
    and loses nothing. The room on disk is there before it is mapped, since a full disk kills who writes to a mapping.
    """

    def __init__(self, file: int, start: int, states: State) -> None:
        self.file, self.start = file, start
        places, size = {}, 0
        for kind, value in states.items():
            places[kind] = size
            size += -(-value.nbytes // ALIGNED) * ALIGNED
        os.posix_fallocate(file, start, size)
        self.size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.map = mmap.mmap(file, size, offset=start)
        self.places = places
        self.tensors = {
            kind: torch.frombuffer(self.map, dtype=value.dtype, count=value.numel(), offset=places[kind]).view(
                value.shape
            )
            for kind, value in states.items()
        }

    def fits(self, states: State) -> bool:
        """Whether they are states of the same kinds, types and shapes."""
        return {kind: (value.dtype, value.shape) for kind, value in states.items()} == {
            kind: (value.dtype, value.shape) for kind, value in self.tensors.items()
        }

    def take(self, states: State) -> None:
        """Write what is not here yet: by calls, so that none of it is in memory twice."""
        for kind, value in states.items():
            if value is not self.tensors[kind]:
                place = self.start + self.places[kind]
                for piece in pieces(value.detach()):
                    rest = memoryview(piece.reshape(-1).view(torch.uint8).numpy().data)
                    while len(rest):
                        written = os.pwrite(self.file, rest, place)
                        rest, place = rest[written:], place + written

    def drop(self) -> None:
        self.map.madvise(mmap.MADV_DONTNEED)


def pieces(value: Tensor) -> Iterator[Tensor]:
    """Its numbers end to end; of a number that fills it, one piece after the other."""
    if any(value.stride()):
        yield value.contiguous()
        return
    left = value.numel()
    filled = value[(0,) * value.ndim].repeat(min(left, PIECE))
    while left:
        yield filled[:left]
        left -= min(left, PIECE)


class Pages:
    """A file without a name in a folder: it is gone when the process ends, however that happens.

    `expected` bytes are taken on disk at once. Raises MachineError E304 where the disk refuses.
    """

    def __init__(self, folder: Path, expected: int) -> None:
        self.folder = folder
        self.pages: dict[str, Page] = {}
        self.used = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # closed with the optimiser
            if expected:
                os.posix_fallocate(self.file.fileno(), 0, expected)
        except OSError as error:
            raise no_room(folder, expected, error) from error

    def keep(self, name: str, state: State) -> bool:
        """Have a parameter's states in the file, which `state` refers to then; False where they are small and stay."""
        wanted = {kind: value for kind, value in state.items() if isinstance(value, Tensor) and value.numel() > 1}
        page, size = self.pages.get(name), sum(value.nbytes for value in wanted.values())
        if size < SMALLEST:
            return False
        try:
            if page is None or not page.fits(wanted):
                page = self.pages[name] = Page(self.file.fileno(), self.used, wanted)
                self.used += page.size
            page.take(wanted)
        except OSError as error:
            raise no_room(self.folder, size, error) from error
        state |= page.tensors
        page.drop()
        return True

    def drop(self, name: str) -> None:
        """Take a parameter's states out of memory, where they were read."""
        if name in self.pages:
            self.pages[name].drop()

    def close(self) -> None:
        """Give the room on disk back, as soon as nobody has a state any more."""
        self.pages = {}
        self.file.close()


class Lent(Mapping[str, Tensor]):
    """States by `name.kind`; when the next one is asked for, the last one is taken out of memory."""

    def __init__(self, tensors: dict[str, Tensor], pages: Pages) -> None:
        self.tensors, self.pages = tensors, pages
        self.last = ""

    def __getitem__(self, key: str) -> Tensor:
        found = self.tensors[key]
        self.pages.drop(self.last)
        self.last = key.rpartition(".")[0]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def open_pages(settings: OptimizerConfig, masters: Mapping[str, nn.Parameter], folder: Path | None) -> Pages | None:
    """The file that the settings ask for, in the folder they name or in this one; None on a GPU."""
    if settings.paging == "off" or on_gpu(masters.values()):
        return None
    place = Path(settings.paging_folder).expanduser() if settings.paging_folder is not None else folder
    assert place is not None, "states in a file need a folder"
    shapes = {name: tuple(master.shape) for name, master in masters.items()}
    return Pages(place, file_bytes(settings, shapes))


def on_gpu(masters: Iterable[nn.Parameter]) -> bool:
    return any(master.device.type != "cpu" for master in masters)


def no_room(folder: Path, size: int, error: OSError) -> MachineError:
    reason = PLAIN.get(error.errno or 0, error.strerror or "unknown error")
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return MachineError(
        "E304",
        f"the optimiser's states take {size / 1e6:,.0f} MB in a file in {folder}: {reason}",
        where=Where(field=FIELD),
        evidence=[f"free there: {shutil.disk_usage(there).free / 1e6:,.0f} MB"],
        fixes=[
            Fix(f"{FIELD}_folder=FOLDER on a larger disk"),
            Fix(f"{FIELD}=off", {FIELD: "off"}, effect="the states are in memory"),
        ],
    )
