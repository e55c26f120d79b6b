"""One optimiser step: forward and backward over microbatches under one global denominator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tunesmith.distributed.mesh import Mesh
from tunesmith.models.forward import base_model, score
from tunesmith.objectives import Objective
from tunesmith.train.optimizer import Optimizer, gradient_norm
from tunesmith.types import Batch


@dataclass(frozen=True, slots=True)
class StepResult:
    """Global figures of one step, before the update: loss = sum / count over all microbatches and ranks."""

    loss: float
    count: float
    grad_norm: float
    metrics: dict[str, float]
    records: tuple[str, ...]

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def compute_step(
    model: nn.Module,
    microbatches: list[Batch],
    objective: Objective,
    optimizer: Optimizer,
    mesh: Mesh,
    neftune_alpha: float = 0.0,
) -> StepResult:
    """Leave the summed gradient of loss / global count in the optimizer and report the loss; nothing is updated.

    A step whose global count is 0 has loss 0 and zero gradients.
    """
    optimizer.clear()
    (count,) = mesh.sum([sum(objective.count(batch) for batch in microbatches)])
    total, sums = 0.0, {}
    for batch in microbatches:
        batch = batch.to(mesh.device())
        scores = score(model, batch, noisy_embeddings(model, batch, neftune_alpha) if neftune_alpha else None)
        loss = objective(scores, batch)
        if count > 0:
            (loss.sum / count).backward()
        total += loss.sum.item()
        for name, value in loss.metrics.items():
            sums[name] = sums.get(name, 0.0) + value.item()
    gradients = optimizer.gradients()
    mesh.sum_gradients(gradients)
    names = objective.metric_names
    totals = mesh.sum([total, *(sums.get(name, 0.0) for name in names)])
    scale = 1 / count if count > 0 else 0.0
    metrics = {name: value * scale for name, value in zip(names, totals[1:], strict=True)}
    records = tuple(record for batch in microbatches for record in batch.records)
    return StepResult(totals[0] * scale, count, gradient_norm(gradients), metrics, records)


def noisy_embeddings(model: nn.Module, batch: Batch, alpha: float) -> Tensor:
    """Embeddings + U(-1, 1) alpha / sqrt(L d), L the length of each segment (arXiv:2310.05914)."""
    embedded = base_model(model).get_input_embeddings()(batch.tokens)
    lengths = (batch.segments[:, 1] - batch.segments[:, 0]).float()
    scale_T = (alpha / (lengths * embedded.shape[-1]).sqrt()).repeat_interleave(lengths.long())
    noise = torch.rand_like(embedded, dtype=torch.float32).mul_(2).sub_(1)
    return embedded + (noise * scale_T[:, None]).to(embedded.dtype)
