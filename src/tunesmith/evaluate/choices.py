"""Log-likelihoods of answers: a question is computed once for all its answers, and a beginning for all questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.data.packing import batch_of, pack
from tunesmith.errors import NumericalError
from tunesmith.models.forward import base_model, score_only
from tunesmith.types import Example

MICROBATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The summed log-probability of an answer, its tokens, and whether each of them was the likeliest."""

    logprob: float
    tokens: int
    greedy: bool


def likelihoods_of(
    model: nn.Module, examples: Sequence[Example], on_progress: Callable[[int, int], None] | None = None
) -> list[list[Likelihood]]:
    """Of every example the likelihoods of its answers, or of all of it; batched by tokens, in order.

    What examples begin with together (a system message, solved examples) is computed once as well.
    """
    found: list[list[Likelihood]] = [[] for _ in examples]
    device, done = base_model(model).device, 0
    for places in pack([len(example) for example in examples], MICROBATCH_TOKENS):
        batch = batch_of([examples[place] for place in places], indices=places, share=True)
        scores = score_only(model, batch.to(device))
        check_numbers(scores.logprobs)
        count = len(batch.group)
        sums = torch.zeros(3, count, dtype=torch.float64)
        columns = (scores.logprobs, torch.ones_like(scores.logprobs), scores.correct)
        for row, column in zip(sums, columns, strict=True):
            row.index_add_(0, batch.sequence.cpu(), column.double().cpu())
        for number, logprob, tokens, right in zip(batch.group.tolist(), *sums.tolist(), strict=True):
            found[batch.examples[number]].append(Likelihood(logprob, round(tokens), right == tokens))
        done += len(places)
        if on_progress is not None:
            on_progress(done, len(examples))
    return found


def check_numbers(logprobs: Tensor) -> None:
    """NumericalError E151 for NaN: one would be the likeliest of all."""
    if torch.isnan(logprobs).any():
        raise NumericalError(
            "E151",
            "the model's predictions are not finite numbers, so its choices mean nothing",
            fixes=["check the weights: an adapter or checkpoint with NaN was loaded"],
        )


def best(figures: Sequence[float]) -> int:
    """The place of the highest; the first of equal ones."""
    return int(np.argmax(figures))
