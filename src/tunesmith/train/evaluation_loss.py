"""The loss and its metrics on held-out examples, over the whole set and all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
        for index in range(self.mesh.rank, len(self.microbatches), self.mesh.world):
            yield self.streams.attach(self.microbatches[index].to(self.mesh.device()))


def evaluation_loss(model: nn.Module, held_out: HeldOut, objectives: Sequence[Objective]) -> dict[str, float]:
    """`loss` and the metrics of every objective: sums over the set / counts over the set, never a mean of means."""
    result = measure(model, held_out, objectives, held_out.mesh)
    return {"loss": result.loss, **result.metrics}
