"""One optimiser step: forward and backward over microbatches, each loss under its one global denominator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tunesmith.distributed.mesh import Mesh
from tunesmith.faults import altered, fault
from tunesmith.models.forward import base_model, read, read_only
from tunesmith.objectives import Objective
from tunesmith.objectives.language_modeling import imitated_weight
from tunesmith.objectives.logratios import REFERENCE
from tunesmith.track.clock import part, phase
from tunesmith.train.optimizer import Optimizer
from tunesmith.train.out_of_memory import within_memory
from tunesmith.types import Batch, Context, Scores


@dataclass(frozen=True, slots=True)
class StepResult:
    """Global figures of one step, before the update.

    `loss` is the sum over objectives of coefficient * sum / count, `counts` are their units, `scored` is the weight of
    all scored tokens. `metrics` hold each objective's loss as well when there are several. `drift` is the mean absolute
    difference between policy and reference in a token's log-probability, None without a reference.
    """

    loss: float
    counts: tuple[float, ...]
    scored: float
    grad_norm: float
    metrics: dict[str, float]
    records: tuple[str, ...] = ()
    drift: float | None = None

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Tally:
    """Sums of losses and metrics over microbatches, kept on the device; `totals` adds up the ranks and divides."""

    def __init__(self, objectives: Sequence[Objective], counts: Sequence[float]) -> None:
        self.objectives = tuple(objectives)
        self.counts = tuple(counts)
        self.names = [("loss", *objective.metric_names) for objective in objectives]
        self.sums: Tensor | None = (
            None  # fp64, every objective's loss and metrics end to end, the drift, of general data the loss
        )
        self.has_reference = any(REFERENCE in objective.needs for objective in objectives)

    @part("head and loss")
    def add(self, scores: Scores, batch: Batch, contexts: Sequence[Context]) -> Tensor:
        """The microbatch's share of the loss, with its graph."""
        shares, found = [], []
        for objective, count, names, context in zip(self.objectives, self.counts, self.names, contexts, strict=True):
            loss = objective(scores, batch, context)
            found += [loss.sum, *(loss.metrics[name] for name in names[1:])]
            shares.append(objective.coefficient * loss.sum / count if count > 0 else 0.0 * loss.sum)
        if self.has_reference:
            found.append((scores.logprobs.detach() - batch.streams[REFERENCE]).abs().sum())
        found += general_sums(scores, batch)
        sums = torch.stack([value.detach().double() for value in found])
        self.sums = sums if self.sums is None else self.sums + sums
        return torch.stack(shares).sum()

    def is_finite(self) -> bool:
        """Whether all sums so far are, on this rank."""
        return self.sums is None or bool(self.sums.isfinite().all())

    def totals(self, mesh: Mesh) -> tuple[float, dict[str, float], float]:
        """The loss, every metric by name, and the summed drift."""
        width = sum(map(len, self.names)) + self.has_reference + 2
        flat = iter(mesh.sum([0.0] * width if self.sums is None else self.sums.tolist()))
        loss, metrics = 0.0, {}
        several = len(self.objectives) > 1
        for objective, count, names in zip(self.objectives, self.counts, self.names, strict=True):
            means = {name: next(flat) / count if count > 0 else 0.0 * next(flat) for name in names}
            own = means.pop("loss")
            loss += objective.coefficient * own
            metrics = {**objective.report(means), **metrics}
            if several:
                metrics[f"loss/{objective.title}"] = own
        drift, general, tokens = next(flat) if self.has_reference else 0.0, next(flat), next(flat)
        return loss, {**metrics, "general_loss": general / tokens} if tokens > 0 else metrics, drift


def general_sums(scores: Scores, batch: Batch) -> tuple[Tensor, Tensor]:
    """Of the sequences of general data: the summed loss of their next tokens, and the weight of these."""
    if batch.general is None or scores.values is not None:
        return batch.weight.new_zeros(()), batch.weight.new_zeros(())
    weight_K = imitated_weight(batch) * batch.general[batch.sequence]
    return -(weight_K * scores.logprobs.detach()).sum(), weight_K.sum()


def compute_step(
    model: nn.Module,
    microbatches: Sequence[Batch],
    objectives: Sequence[Objective],
    optimizer: Optimizer,
    mesh: Mesh,
    *,
    memory: Mapping[str, float] | None = None,
    neftune_alpha: float = 0.0,
    attach: Callable[[Batch], Batch] = lambda batch: batch,
) -> StepResult:
    """Leave the summed gradient of the loss in the optimizer, unless it updates in the backward pass, and report it.

    An objective whose global count is 0 adds loss 0 and no gradient. `memory` is what `Objective.remember` kept, and
    `attach` adds the streams to a microbatch that is on the device. TooLarge where they do not fit into memory.
    """
    optimizer.clear()
    *counts, scored = global_counts(microbatches, objectives, mesh)
    with phase("batch to device"):
        ready = within_memory(mesh, lambda: [attach(batch.to(mesh.device())) for batch in microbatches])
    with phase("look ahead"):
        contexts = look_ahead(model, ready, objectives, mesh, memory or {})
    tally = Tally(objectives, counts)

    def pass_through() -> bool:
        for number, batch in enumerate(ready, 1):
            with phase("forward"):
                embeddings = noisy_embeddings(model, batch, neftune_alpha) if neftune_alpha else None
                scores = read(model, batch, objectives[0].reads, embeddings)
                share = tally.add(scores, batch, contexts)
            fault("train.backward", tokens=len(batch.tokens))
            is_wanted = number < len(ready) or optimizer.complete(tally.is_finite)
            if any(counts) and is_wanted:
                with phase("backward"):
                    (share if optimizer.scale == 1 else share * optimizer.scale).backward()
        return True

    within_memory(mesh, pass_through)
    grad_norm = optimizer.finish(mesh)
    loss, metrics, drift = tally.totals(mesh)
    records = tuple(record for batch in microbatches for record in batch.records)
    drift = drift / scored if tally.has_reference and scored > 0 else None
    return StepResult(loss, tuple(counts), scored, grad_norm, metrics, records, drift)


def measure(
    model: nn.Module,
    microbatches: Iterable[Batch],
    objectives: Sequence[Objective],
    mesh: Mesh,
    memory: Mapping[str, float] | None = None,
    counted: Iterable[Batch] | None = None,
) -> StepResult:
    """The same figures without gradients or update, such as of held-out data; `microbatches` is read several times.

    `counted` are the same ones, cheaper to come by, for counting units.
    """
    *counts, scored = global_counts(microbatches if counted is None else counted, objectives, mesh)
    contexts = look_ahead(model, microbatches, objectives, mesh, memory or {})
    tally = Tally(objectives, counts)
    for batch in microbatches:
        batch = batch.to(mesh.device())
        tally.add(read_only(model, batch, objectives[0].reads), batch, contexts)
    loss, metrics, _ = tally.totals(mesh)
    return StepResult(loss, tuple(counts), scored, 0.0, metrics)


def global_counts(microbatches: Iterable[Batch], objectives: Sequence[Objective], mesh: Mesh) -> list[float]:
    """Units of every objective, and last the weight of all scored tokens, over all microbatches and ranks."""
    counts = [0.0] * (len(objectives) + 1)
    for batch in microbatches:
        for index, objective in enumerate(objectives):
            counts[index] += objective.count(batch)
        counts[-1] += batch.weight.sum().item()
    return mesh.sum(counts)


def look_ahead(
    model: nn.Module,
    microbatches: Iterable[Batch],
    objectives: Sequence[Objective],
    mesh: Mesh,
    memory: Mapping[str, float],
) -> list[Context]:
    """What every objective may know of the whole step; costs a forward pass when one of them looks ahead."""
    ahead = [index for index, objective in enumerate(objectives) if objective.looks_ahead]
    found: dict[int, list[Tensor]] = {index: [] for index in ahead}

    def pass_through() -> bool:
        for batch in microbatches:
            seen = batch if batch.mismatched is None else batch.mismatched
            seen = seen.to(mesh.device())
            scores = read_only(model, seen, objectives[0].reads)
            for index in ahead:
                found[index].append(objectives[index].glance(scores, seen).detach())
        return True

    if ahead:
        within_memory(mesh, pass_through)
    rows = {index: mesh.gather(together(parts)) for index, parts in found.items()}
    return [Context(rows.get(index), memory) for index in range(len(objectives))]


def together(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, 1)


def noisy_embeddings(model: nn.Module, batch: Batch, alpha: float) -> Tensor:
    """Embeddings + U(-1, 1) alpha / sqrt(L d), L the length of each segment (arXiv:2310.05914)."""
    embedded = base_model(model).get_input_embeddings()(batch.tokens)
    lengths = (batch.segments[:, 1] - batch.segments[:, 0]).float()
    scale_T = (alpha / (lengths * embedded.shape[-1]).sqrt()).repeat_interleave(lengths.long())
    noise = torch.rand_like(embedded, dtype=torch.float32).mul_(2).sub_(1)
    return embedded + (noise * scale_T[:, None]).to(embedded.dtype)


def with_faults(result: StepResult, step: int) -> StepResult:
    """The result, with what armed faults make of its figures."""
    loss, norm = altered("train.loss", result.loss, step), altered("train.grad_norm", result.grad_norm, step)
    return result if (loss, norm) == (result.loss, result.grad_norm) else replace(result, loss=loss, grad_norm=norm)
