"""The only place that knows ranks: who am I, sum over everybody, wait for everybody."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import FileStore, Store  # pyright: ignore[reportPrivateImportUsage]

from tunesmith.distributed.beats import Beats
from tunesmith.distributed.heart import Heart
from tunesmith.distributed.launched import answer_stack_requests, launch_folder
from tunesmith.distributed.rendezvous import Place, meet, stay_on_loopback
from tunesmith.errors import Fix, RankDied, UsageError

Result = TypeVar("Result")

BUCKET = 32 * 1024 * 1024  # elements reduced in one message


@dataclass(frozen=True, slots=True)
class Mesh:
    """The data-parallel world; a single process is a world of one on the same code path."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    heart: Heart = field(default_factory=Heart, compare=False)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def device(self) -> torch.device:
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over ranks, in double precision."""
        if self.world == 1:
            return values
        with self.exchange("sum", len(values)):
            total = torch.tensor(values, dtype=torch.float64, device=self.device())
            dist.all_reduce(total)
            return total.tolist()

    def only_mine(self, value: float) -> list[float]:
        """A place for every rank, of which this one fills its own; `sum` then tells the values of all."""
        return [value if rank == self.rank else 0.0 for rank in range(self.world)]

    def largest(self, value: float) -> float:
        if self.world == 1:
            return value
        with self.exchange("largest", 1):
            most = torch.tensor(value, dtype=torch.float64, device=self.device())
            dist.all_reduce(most, op=dist.ReduceOp.MAX)
            return most.item()

    def sum_gradients(self, gradients: Iterable[Tensor]) -> None:
        """Add up gradients over ranks in place, a few large messages instead of one per tensor."""
        if self.world == 1:
            return
        for bucket in buckets(list(gradients)):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            with self.exchange("sum of gradients", flat.numel()):
                dist.all_reduce(flat)
            parts = flat.split([gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def gather(self, rows: Tensor) -> Tensor:
        """The rows (R, C) of all ranks one below the other, in the order of ranks; R may differ between ranks."""
        if self.world == 1:
            return rows
        shapes = [torch.zeros(2, dtype=torch.int64, device=self.device()) for _ in range(self.world)]
        with self.exchange("gather", 2):
            dist.all_gather(shapes, torch.tensor(rows.shape if len(rows) else (0, 0), device=self.device()))
            most, width = torch.stack(shapes).amax(0).tolist()
        mine = torch.zeros(most, width, dtype=rows.dtype, device=self.device())
        if len(rows):
            mine[: len(rows)] = rows
        parts = [torch.empty_like(mine) for _ in range(self.world)]
        with self.exchange("gather", mine.numel()):
            dist.all_gather(parts, mine)
        return torch.cat([part[: int(shape[0])] for part, shape in zip(parts, shapes, strict=True)]).to(rows.device)

    def gather_texts(self, text: str) -> list[str]:
        """The text of every rank, in the order of ranks."""
        own = list(text.encode())
        rows = torch.tensor([[self.rank, byte] for byte in own], dtype=torch.int64).reshape(-1, 2)
        found = self.gather(rows.to(self.device())).cpu()
        return [bytes(found[found[:, 0] == rank, 1].tolist()).decode() for rank in range(self.world)]

    def barrier(self) -> None:
        if self.world > 1:
            with self.exchange("barrier", 0):
                dist.barrier()

    def all_agree(self, yes: bool) -> bool:
        """True on every rank when every rank says yes."""
        return self.sum([0.0 if yes else 1.0]) == [0.0]

    def first_then_others(self, action: Callable[[], Result]) -> Result:
        """Run `action` on the first rank, then on the others, which find what it left on disk."""
        if self.is_first:
            result = action()
            self.barrier()
            return result
        self.barrier()
        return action()

    def share(self, text: str | None) -> str:
        """The first rank's text, on every rank."""
        if self.world == 1:
            assert text is not None
            return text
        encoded = torch.tensor(list((text or "").encode()), dtype=torch.uint8, device=self.device())
        length = torch.tensor(len(encoded), device=self.device())
        with self.exchange("broadcast", 1):
            dist.broadcast(length, 0)
        if not self.is_first:
            encoded = torch.empty(int(length), dtype=torch.uint8, device=self.device())
        with self.exchange("broadcast", int(length)):
            dist.broadcast(encoded, 0)
        return bytes(encoded.tolist()).decode()

    @contextmanager
    def exchange(self, kind: str, size: int) -> Iterator[None]:
        """What is inside `with` needs every rank; RankDied E499 when another one breaks it off or does not answer."""
        try:
            with self.heart.talking(kind, size):
                yield
        except RuntimeError as error:
            if not is_about_others(error):
                raise
            message = f"rank {self.rank} lost the other ranks in a {kind} of {size:,} numbers"
            fix = Fix("look at what the other ranks tell: one of them failed first")
            raise RankDied("E499", message, evidence=[str(error).partition("\n")[0][:200]], fixes=[fix]) from error

    def close(self) -> None:
        self.barrier()
        if self.world > 1:
            dist.destroy_process_group()


def buckets(tensors: list[Tensor]) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    held = 0
    for tensor in tensors:
        if bucket and (held + tensor.numel() > BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, held = [], 0
        bucket.append(tensor)
        held += tensor.numel()
    if bucket:
        yield bucket


def is_about_others(error: RuntimeError) -> bool:
    """Whether a library for exchange raised it, which has classes of its own for some of its errors only."""
    words = str(error)
    return isinstance(error, dist.DistError) or any(name in words for name in ("gloo", "NCCL", "Connection closed"))


def join_world(timeout_seconds: float = 3600.0) -> Mesh:
    """The world that a launcher, ours or torchrun, describes in the environment, or a world of one.

    A rank waits at most `timeout_seconds` for the others; the first one prepares the data in that time.
    """
    world = read_integer("WORLD_SIZE", 1)
    if world == 1:
        return Mesh()
    place = Place(read_integer("RANK", 0), world, read_integer("LOCAL_RANK", 0))
    place.check()
    folder = launch_folder()
    heart = Heart() if folder is None else Heart(Beats(folder / "beats", world).row(place.rank))
    mesh = Mesh(place.rank, world, place.local_rank, heart)
    if folder is None:
        store: Store = meet(place)
    else:
        answer_stack_requests(folder)
        heart.start_beating()
        stay_on_loopback()
        store = FileStore(str(folder / "store"), world)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    limit = timedelta(seconds=timeout_seconds)
    dist.init_process_group(backend, store=store, rank=mesh.rank, world_size=world, timeout=limit)
    return mesh


def read_integer(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UsageError("E020", f"{name} must be a whole number, it is {text!r}", fixes=["start with torchrun"])
    return int(text)
