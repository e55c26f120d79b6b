"""The only place that knows ranks: who am I, sum over everybody, wait for everybody."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tunesmith.errors import UsageError

Result = TypeVar("Result")

BUCKET = 32 * 1024 * 1024  # elements reduced in one message


@dataclass(frozen=True, slots=True)
class Mesh:
    """The data-parallel world; a single process is a world of one on the same code path."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def device(self) -> torch.device:
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over ranks, in double precision."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device())
        dist.all_reduce(total)
        return total.tolist()

    def largest(self, value: float) -> float:
        if self.world == 1:
            return value
        most = torch.tensor(value, dtype=torch.float64, device=self.device())
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return most.item()

    def sum_gradients(self, gradients: Iterable[Tensor]) -> None:
        """Add up gradients over ranks in place, a few large messages instead of one per tensor."""
        if self.world == 1:
            return
        for bucket in buckets(list(gradients)):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            parts = flat.split([gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def gather(self, rows: Tensor) -> Tensor:
        """The rows (R, C) of all ranks one below the other, in the order of ranks; R may differ between ranks."""
        if self.world == 1:
            return rows
        shapes = [torch.zeros(2, dtype=torch.int64, device=self.device()) for _ in range(self.world)]
        dist.all_gather(shapes, torch.tensor(rows.shape if len(rows) else (0, 0), device=self.device()))
        most, width = torch.stack(shapes).amax(0).tolist()
        mine = torch.zeros(most, width, dtype=rows.dtype, device=self.device())
        if len(rows):
            mine[: len(rows)] = rows
        parts = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(parts, mine)
        return torch.cat([part[: int(shape[0])] for part, shape in zip(parts, shapes, strict=True)]).to(rows.device)

    def barrier(self) -> None:
        if self.world > 1:
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
        dist.broadcast(length, 0)
        if not self.is_first:
            encoded = torch.empty(int(length), dtype=torch.uint8, device=self.device())
        dist.broadcast(encoded, 0)
        return bytes(encoded.tolist()).decode()

    def close(self) -> None:
        if self.world > 1:
            dist.barrier()
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


def join_world(timeout_seconds: float = 3600.0) -> Mesh:
    """The world that the launcher (torchrun) describes in the environment, or a world of one.

    A rank waits at most `timeout_seconds` for the others; the first one prepares the data in that time.
    """
    world = read_integer("WORLD_SIZE", 1)
    if world == 1:
        return Mesh()
    mesh = Mesh(read_integer("RANK", 0), world, read_integer("LOCAL_RANK", 0))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, rank=mesh.rank, world_size=world, timeout=timedelta(seconds=timeout_seconds))
    return mesh


def read_integer(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UsageError("E020", f"{name} must be a whole number, it is {text!r}", fixes=["start with torchrun"])
    return int(text)
