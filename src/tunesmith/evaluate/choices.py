"""Log-likelihoods of answers: a question is computed once for all its answers, and a beginning for all questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.data.packing import batch_of, pack, without_unread
from tunesmith.errors import NumericalError
from tunesmith.models.forward import base_model, score_whole
from tunesmith.types import Example

MICROBATCH_TOKENS = 4096
SHARED = 6  # tokens that questions must begin with together to be worth a segment, where nothing is trained


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
        group = [examples[place] for place in places]
        batch = without_unread(batch_of(group, indices=places, share=True, shortest=SHARED))
        scores = score_whole(model, batch.to(device))
        check_numbers(scores.logprobs)
        counts = torch.bincount(batch.sequence, minlength=len(batch.group)).tolist()
        columns = (column.cpu().split(counts) for column in (scores.logprobs, scores.correct))
        for number, logprobs, correct in zip(batch.group.tolist(), *columns, strict=True):
            found[batch.examples[number]].append(
                Likelihood(logprobs.double().sum().item(), len(logprobs), bool(correct.all()))
            )
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
