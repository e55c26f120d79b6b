"""Whether all ranks still hold the same weights, bit by bit, and which one does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import BadInput, Diagnostic, Fix, NumericalError
from tunesmith.track.clock import phase
from tunesmith.track.files import read_object, replace_text, to_json
from tunesmith.train.optimizer import Optimizer

NOTE = "replicas.json"  # in the run's folder: what ranks held when they differed, for the attempt after it
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
SHOWN = 5
COMPARED = 1 << 24  # numbers of a tensor that are looked at one by one


def held_tensors(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """All that decides what a rank computes: weights, frozen ones too, buffers, and fp32 masters."""
    yield from model.named_parameters()
    yield from model.named_buffers()
    yield from ((f"{name} (master)", held.kept) for name, held in optimizer.held.items() if held.has_copy)


def as_bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(BITS[tensor.element_size()])


def fingerprint(tensor: Tensor) -> Tensor:
    """The sum of the bit patterns of its numbers, modulo 2^64: every single flipped bit changes it."""
    return as_bits(tensor).sum(dtype=torch.int64)


class Replicas:
    """Compares the weights of all ranks every some steps and before every checkpoint, which thus holds agreed ones.

    Does nothing on one rank. `folder` is the run's; what is not among `trained` keeps its values all along.
    """

    def __init__(
        self,
        mesh: Mesh,
        every: int,
        folder: Path,
        trained: Mapping[str, Tensor],
        warn: Callable[[Diagnostic], object],
    ) -> None:
        self.mesh, self.folder, self.warn = mesh, folder, warn
        self.every = every if mesh.world > 1 else 0
        self.trained = {id(one) for one in trained.values()}
        self.began: dict[str, list[int]] = {}  # fingerprints of frozen weights, by rank, at the first look
        self.agreed_at = -1
        self.noted = self.read_note() if self.every else {}

    def look(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Compare when it is time, and at a step at which the ranks of an earlier attempt differed."""
        if self.every and (step % self.every == 0 or step == self.noted.get("step")):
            self.compare(step, model, optimizer)

    @phase("between ranks")
    def compare(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """NumericalError E532 on every rank when one holds other weights, naming rank, tensor and step."""
        if not self.every or self.agreed_at == step:
            return
        named = dict(held_tensors(model, optimizer))
        mine = torch.stack([fingerprint(tensor).to(self.mesh.device()) for tensor in named.values()])
        rows_RP = self.mesh.gather(mine[:, None]).view(self.mesh.world, -1).cpu()
        if not self.began:
            self.began = {name: rows_RP[:, index].tolist() for index, name in self.frozen(named)}
        if bool((rows_RP == rows_RP[0]).all()):
            self.agreed_at = step
            self.replayed(step, digest(rows_RP[0]))
            return
        if self.mesh.is_first:
            note = {"step": step, "ranks": [digest(row) for row in rows_RP]}
            replace_text(self.folder / NOTE, to_json(note) + "\n")
        differ = (rows_RP != rows_RP[0]).any(0).nonzero()[:, 0].tolist()
        names = list(named)
        guilty = odd_ones({names[index]: rows_RP[:, index].tolist() for index in differ}, self.began)
        told = [f"{names[index]}: {self.apart(named[names[index]])}" for index in differ[:SHOWN]]
        raise self.error(step, guilty, names[differ[0]], [*told, *more(len(differ) - SHOWN)])

    def frozen(self, named: Mapping[str, Tensor]) -> Iterator[tuple[int, str]]:
        for index, (name, tensor) in enumerate(named.items()):
            if isinstance(tensor, nn.Parameter) and id(tensor) not in self.trained:
                yield index, name

    def apart(self, tensor: Tensor) -> str:
        """The first number of a tensor that is not the same everywhere, on every rank; all ranks ask together."""
        if tensor.numel() > COMPARED:
            return f"{tensor.numel():,} numbers, not looked at one by one"
        flat = as_bits(tensor)
        rows_RN = self.mesh.gather(flat[:, None].to(self.mesh.device())).view(self.mesh.world, -1).cpu()
        places = (rows_RN != rows_RN[0]).any(0).nonzero()[:, 0]
        values = rows_RN[:, places[0]].view(tensor.dtype).tolist()
        shown = ", ".join(f"{value!r} on rank {rank}" for rank, value in enumerate(values))
        return f"{len(places):,} of {tensor.numel():,} numbers differ; number {int(places[0]):,} is {shown}"

    def error(self, step: int, guilty: list[int], name: str, evidence: list[str]) -> NumericalError:
        run = self.folder
        if guilty:
            who = f"rank {', '.join(map(str, guilty))} holds other weights than the run had so far"
        else:
            who = f"ranks {', '.join(map(str, range(self.mesh.world)))} hold different weights"
            evidence = [*evidence, f"who is right will be told when step {step} is reached again after a resume"]
        return NumericalError(
            "E532",
            f"step {step}: {who}: {name}",
            evidence=[*evidence, "checkpoints hold only weights that all ranks agreed on"],
            fixes=(
                Fix("go on from the newest checkpoint", command=f"tunesmith runs resume {run}"),
                Fix("test the memory of that machine, if it happens again"),
            ),
        )

    def read_note(self) -> dict[str, object]:
        try:
            return read_object(self.folder / NOTE)
        except BadInput:  # none was left, as nearly always
            return {}

    def replayed(self, step: int, own: str) -> None:
        """W520 once all ranks agree at a step where they did not before: who was right then."""
        if step != self.noted.get("step"):
            return
        held = self.noted.get("ranks")
        held = held if isinstance(held, list) else []
        wrong = [str(rank) for rank, one in enumerate(held) if one != own]
        if len(wrong) == len(held):
            message = f"step {step} was computed again and equals none of the ranks that differed there before"
        else:
            message = f"step {step} was computed again: rank {', '.join(wrong)} held wrong weights there before"
        fixes = (Fix("test the memory of its machine"), Fix("train.deterministic=true", {"train.deterministic": True}))
        self.warn(Diagnostic("W520", message, "warning", fixes=fixes if len(wrong) == len(held) else fixes[:1]))
        self.noted = {}
        if self.mesh.is_first:
            (self.folder / NOTE).unlink(missing_ok=True)


def digest(row_P: Tensor) -> str:
    """One hexadecimal number for the fingerprints of a rank."""
    value = 0
    for number in row_P.tolist():
        value = (value * 1_000_003 + number) % 2**64
    return f"{value:016x}"


def odd_ones(held: Mapping[str, list[int]], began: Mapping[str, list[int]]) -> list[int]:
    """Ranks that hold something else than most others do, or most began with where it never changes.

    None when there is no majority, as on two ranks that differ in what they train.
    """
    found: set[int] = set()
    for name, values in held.items():
        right = most_common(began.get(name, values))
        if right is not None:
            found |= {rank for rank, value in enumerate(values) if value != right}
    return sorted(found)


def most_common(values: list[int]) -> int | None:
    """The value of more than half of the ranks."""
    return next((value for value in set(values) if 2 * values.count(value) > len(values)), None)


def more(count: int) -> list[str]:
    return [f"and {count} more"] if count > 0 else []
