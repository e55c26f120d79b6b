"""The first step, where policy and reference must agree when the reference is the model as the run began."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tunesmith.errors import Fix, NumericalError, Where
from tunesmith.models.forward import base_model
from tunesmith.objectives import Objective
from tunesmith.train.parts import Parts
from tunesmith.train.step import StepResult
from tunesmith.train.streams import Streams

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # nats per token; other packing rounds differently


def judge_start(objectives: Sequence[Objective], streams: Streams, result: StepResult, model: nn.Module) -> str | None:
    """What to tell of the first step, if anything.

    Raises NumericalError E281 when the reference is the model as the run began and yet gives other log-probabilities.
    """
    if result.drift is None:
        return None
    names = " + ".join(objective.title for objective in objectives)
    starts = [objective.start_loss() for objective in objectives]
    known = [
        objective.coefficient * start for objective, start in zip(objectives, starts, strict=True) if start is not None
    ]
    expected = f", {sum(known):.6f} by the formula" if len(known) == len(objectives) else ""
    if not streams.equals_start:
        return (
            f"the reference is another model than the one that is trained: their log-probabilities differ by "
            f"{result.drift:.3f} nats per token, and the first loss of {names} is {result.loss:.6f}"
        )
    dtype = base_model(model).dtype
    if result.drift <= TOLERANCE.get(dtype, 5e-2):
        return f"policy and reference agree at the start; the first loss of {names} is {result.loss:.6f}{expected}"
    raise NumericalError(
        "E281",
        f"policy and reference differ at the start by {result.drift:.3g} nats per token, where they must be equal",
        where=Where(field="model.reference"),
        evidence=[
            f"the first loss of {names} is {result.loss:.6f}{expected}",
            f"in {str(dtype).removeprefix('torch.')}",
        ],
        fixes=[
            Fix(f"remove cached log-probabilities that were changed: {streams.place}"),
            Fix("model.attention=dense", {"model.attention": "dense"}, effect="slower, one mask over the batch"),
        ],
    )


def check_start(parts: Parts, result: StepResult) -> None:
    """Policy and reference agree where the reference is the model as loaded; say so, or that it is another one.

    Raises NumericalError E281 when they should agree and do not.
    """
    told = judge_start(parts.objectives, parts.streams, result, parts.model)
    if told is not None:
        parts.tracker.event("start", {"message": told})
        parts.tracker.text(told)
