"""The loss of the first step, which is known in advance when the policy starts as its own reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tunesmith.errors import Fix, NumericalError, Where
from tunesmith.models.forward import base_model
from tunesmith.objectives import Objective
from tunesmith.train.step import StepResult
from tunesmith.train.streams import Streams

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # relative; bf16 rounds the two passes differently


def judge_start(objectives: Sequence[Objective], streams: Streams, result: StepResult, model: nn.Module) -> str | None:
    """What to tell of the first loss, if anything.

    Raises NumericalError E281 when the reference is the model as the run began and the loss does not follow from it.
    """
    starts = [objective.start_loss() for objective in objectives]
    known = [objective.coefficient * start for objective, start in zip(objectives, starts, strict=True) if start]
    if streams.reference is None or len(known) < len(objectives) or not any(result.counts):
        return None
    expected = sum(known)
    difference = abs(result.loss - expected)
    names = " + ".join(objective.title for objective in objectives)
    if not streams.equals_start:
        return (
            f"the first loss of {names} is {result.loss:.6f}; it would be {expected:.6f} if the policy started as its "
            "reference, but model.reference names another model"
        )
    dtype = base_model(model).dtype
    if difference <= TOLERANCE.get(dtype, 2e-2) * max(1.0, expected):
        return f"the first loss of {names} is {result.loss:.6f}, as it must be when the policy starts as its reference"
    raise NumericalError(
        "E281",
        f"the first loss of {names} is {result.loss:.6f}, not {expected:.6f}: policy and reference differ at the start",
        where=Where(field="model.reference"),
        evidence=[f"difference {difference:.2g} in {str(dtype).removeprefix('torch.')}"],
        fixes=[
            Fix("compare with the model as it is loaded", {"model.reference.source": "start"}),
            "remove the folder of cached reference log-probabilities when it was copied from another machine",
        ],
    )
