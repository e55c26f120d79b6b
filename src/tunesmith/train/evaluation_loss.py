"""The loss and its metrics on held-out examples, over the whole set and all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from tunesmith.data.loader import Microbatches
from tunesmith.distributed.mesh import Mesh
from tunesmith.objectives import Objective
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

    def bare(self) -> Iterator[Batch]:
        """The same microbatches without streams, where they were built."""
        return (self.microbatches[index] for index in range(self.mesh.rank, len(self.microbatches), self.mesh.world))


def evaluation_loss(
    model: nn.Module, held_out: HeldOut, objectives: Sequence[Objective], memory: Mapping[str, float]
) -> dict[str, float]:
    """`loss` and the metrics of every objective: sums over the set / counts over the set, never a mean of means."""
    result = measure(model, held_out, objectives, held_out.mesh, memory, held_out.bare())
    return {"loss": result.loss, **result.metrics}
