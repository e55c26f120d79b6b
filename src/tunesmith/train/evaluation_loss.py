"""The loss and its metrics on held-out examples, over the whole set and all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from torch import nn

from tunesmith.data.loader import Microbatches
from tunesmith.distributed.mesh import Mesh
from tunesmith.objectives import Objective
from tunesmith.train.signals import Poll
from tunesmith.train.step import measure
from tunesmith.train.streams import Streams
from tunesmith.types import Batch


class HeldOut:
    """Microbatches with their streams, built whenever they are asked for, so that memory stays flat."""

    def __init__(self, microbatches: Microbatches, streams: Streams, mesh: Mesh) -> None:
        self.microbatches = microbatches
        self.streams = streams
        self.mesh = mesh

    def __iter__(self) -> Iterator[Batch]:
        return (self.streams.attach(batch.to(self.mesh.device())) for batch in self.bare())

    def polled(self, poll: Poll) -> Iterator[Batch]:
        """The same, asking before each; as often on every rank, because ranks answer together."""
        own = iter(self)
        for _ in range(0, len(self.microbatches), self.mesh.world):
            poll()
            yield from islice(own, 1)

    def bare(self) -> Iterator[Batch]:
        """The same microbatches without streams, where they were built."""
        return (self.microbatches[index] for index in range(self.mesh.rank, len(self.microbatches), self.mesh.world))


@dataclass(frozen=True, slots=True)
class Polled:
    """Held-out data that can be read several times, and broken off before each microbatch."""

    held_out: HeldOut
    poll: Poll

    def __iter__(self) -> Iterator[Batch]:
        return self.held_out.polled(self.poll)


def evaluation_loss(
    model: nn.Module, held_out: HeldOut, objectives: Sequence[Objective], memory: Mapping[str, float], poll: Poll
) -> dict[str, float]:
    """`loss` and the metrics of every objective: sums over the set / counts over the set, never a mean of means."""
    result = measure(model, Polled(held_out, poll), objectives, held_out.mesh, memory, held_out.bare())
    return {"loss": result.loss, **result.metrics}
