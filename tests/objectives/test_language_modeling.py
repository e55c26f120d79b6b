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


def test_the_z_loss_is_the_weighted_square_of_log_z_and_told_apart():
    logprobs, log_z = torch.log(torch.tensor([0.5, 0.25, 0.125])), torch.tensor([3.0, -2.0, 1.0])
    given = batch([1.0, 2.0, 0.5])
    plain = SFT()(Scores(logprobs, torch.zeros(3), log_z=log_z), given)
    loss = SFT(z_loss=0.1)(Scores(logprobs, torch.zeros(3), log_z=log_z), given)
    extra = 0.1 * (1 * 9 + 2 * 4 + 0.5 * 1)
    assert math.isclose(loss.metrics["z_loss"].item(), extra, rel_tol=1e-6)
    assert math.isclose(loss.sum.item(), plain.sum.item() + extra, rel_tol=1e-6)
    assert SFT(z_loss=0.1).report({"accuracy": 1.0, "z_loss": 0.2}) == {"accuracy": 1.0, "z_loss": 0.2}
    assert SFT().report({"accuracy": 1.0, "z_loss": 0.0}) == {"accuracy": 1.0}
