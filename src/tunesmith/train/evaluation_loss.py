"""The loss on held-out examples, over the whole set and all ranks."""

from __future__ import annotations

import math

from torch import nn

from tunesmith.data.packing import batch_of, pack
from tunesmith.data.prepared import Prepared
from tunesmith.distributed.mesh import Mesh
from tunesmith.models.forward import score_only


def evaluation_loss(model: nn.Module, prepared: Prepared, microbatch_tokens: int, mesh: Mesh) -> float:
    """Sum of weighted negative log-probabilities / sum of weights, never a mean of means; memory stays flat."""
    groups = pack(prepared.lengths.tolist(), microbatch_tokens)
    total = count = 0.0
    for group in groups[mesh.rank :: mesh.world]:
        batch = batch_of([prepared[index] for index in group]).to(mesh.device())
        scores = score_only(model, batch)
        total -= (batch.weight * scores.logprobs).sum().item()
        count += batch.weight.sum().item()
    total, count = mesh.sum([total, count])
    return total / count if count else math.nan
