"""States that leave the frozen lowest layers, computed once per example; training begins above them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tunesmith.data.branches import forest_of
from tunesmith.data.loader import Builder, Microbatches
from tunesmith.data.packing import batch_of
from tunesmith.distributed.mesh import Mesh
from tunesmith.models.forward import base_model, trunk_states
from tunesmith.train.state_cache import Rows, StateCache
from tunesmith.types import Batch, Entry, Example


class Trunk:
    """Gives batches of one data set the states of their tokens behind the `layer` lowest layers.

    An example's states are always computed in the same microbatch, whatever batches ask for them: rounding depends on
    the shape of a matmul, and so a cache that is filled anew after a crash holds the same bytes.
    """

    def __init__(self, model: nn.Module, layer: int, build: Builder, microbatch_tokens: int, cache: StateCache) -> None:
        self.model = model
        self.layer = layer
        self.build = build
        self.cache = cache
        self.groups = Microbatches(build, microbatch_tokens).groups
        self.group_of = {index: number for number, group in enumerate(self.groups) for index in group}
        base = base_model(model)
        self.device, self.dtype = base.device, base.dtype

    def attach(self, batch: Batch) -> Batch:
        """The batch, to be computed from the states of its tokens, which are read when it is."""
        return replace(batch, entry=Entry(self.layer, lambda: self.load(batch)))

    def load(self, batch: Batch) -> Float[Tensor, "T D"]:
        assert batch.origins is not None, "a batch of prepared examples knows where its segments come from"
        kept = [self.states(index) for index in batch.examples]
        pieces = []
        for (start, end, _), (number, begin) in zip(batch.segments.tolist(), batch.origins.tolist(), strict=True):
            pieces.append(kept[number][begin : begin + end - start])
        return torch.from_numpy(np.concatenate(pieces)).view(self.dtype)

    def states(self, index: int) -> Rows:
        """The states of one example; what is missing or damaged is computed with the rest of its microbatch."""
        found = self.cache.read(index)
        if found is None:
            self.compute(self.groups[self.group_of[index]])
            found = self.cache.read(index)
        assert found is not None, "what was just written can be read"
        return found

    def fill(self, mesh: Mesh, progress: Callable[[int, int], None] | None = None) -> None:
        """Compute what is missing: each rank its share where all read the same files, else everything."""
        missing = self.cache.missing()
        mesh.barrier()
        wanted = [group for group in self.groups if not missing.isdisjoint(group)]
        mine = wanted[mesh.rank :: mesh.world] if self.cache.is_shared else wanted
        for done, group in enumerate(mine, 1):
            self.compute(group)
            if progress is not None:
                progress(done, len(mine))
        mesh.barrier()

    def compute(self, group: Sequence[int]) -> None:
        """Keep the states of a microbatch's examples; what several begin with is computed once and kept for each."""
        examples = [ending(self.build.prepared[index]) for index in group]
        batch = batch_of(examples, self.build.task.reads, group, share=self.build.share)
        states = trunk_states(self.model, batch.to(self.device), self.layer)
        assert states.dtype == self.dtype, "layers compute in the type of the model"
        flat = states.cpu().contiguous().view(torch.uint8).numpy()
        rows = {index: np.zeros((self.cache.length(index), flat.shape[1]), dtype=np.uint8) for index in group}
        assert batch.origins is not None
        for (start, end, _), (number, begin) in zip(batch.segments.tolist(), batch.origins.tolist(), strict=True):
            rows[batch.examples[number]][begin : begin + end - start] = flat[start:end]
        for root in forest_of(examples, share=self.build.share):
            for branch in root.walk():
                own = slice(branch.above, branch.end)
                for place in branch.members[1:]:
                    rows[group[place]][own] = rows[group[branch.members[0]]][own]
        for index in group:
            self.cache.write(index, rows[index])


def ending(example: Example) -> Example:
    """The example with something to score at its end: where nothing is, a batch would leave tokens out."""
    if example.weights.any():
        return example
    weights = np.zeros_like(example.weights)
    weights[-1] = 1
    return replace(example, weights=weights)
