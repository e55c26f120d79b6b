"""SFT by hand."""

import math

import torch

from tunesmith.objectives import SFT
from tunesmith.types import Batch, Scores


def batch(weight: list[float]) -> Batch:
    index = torch.zeros(len(weight), dtype=torch.long)
    segments = torch.tensor([[0, len(weight), -1]])
    return Batch(index, index, segments, index, index, torch.tensor(weight), index, index, torch.zeros(len(weight)))


def test_sft_is_the_weighted_sum_of_negative_log_probabilities():
    logprobs = torch.log(torch.tensor([0.5, 0.25, 0.125]))
    given = batch([1.0, 2.0, 0.5])
    loss = SFT()(Scores(logprobs, torch.tensor([1.0, 0.0, 1.0])), given)
    assert math.isclose(loss.sum.item(), math.log(2) * (1 + 2 * 2 + 0.5 * 3), rel_tol=1e-6)
    assert SFT().count(given) == 3.5
    assert loss.metrics["accuracy"].item() == 1.5
