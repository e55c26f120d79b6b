"""Model FLOP of a step from what its batches hold."""

import pytest
import torch
from tests.tiny import tiny_model_folder

from tunesmith.models.config import FullConfig, LoraConfig
from tunesmith.models.inventory import take_inventory, trainable
from tunesmith.planning.calibration import flops_per_token, forward_flops
from tunesmith.train.work import Amount, Rates, Work, amount_of
from tunesmith.types import Batch


def batch(segments: list[tuple[int, int, int]], scored: int) -> Batch:
    total = segments[-1][1]
    numbers, zeros = torch.arange(total), torch.zeros(scored, dtype=torch.int64)
    return Batch(
        tokens=numbers,
        positions=numbers,
        segments=torch.tensor(segments),
        query=zeros,
        target=zeros,
        weight=torch.ones(scored),
        sequence=zeros,
        group=torch.zeros(1, dtype=torch.int64),
        labels=torch.zeros(1),
    )


def test_documents_and_shared_beginnings_are_counted_as_they_are_computed():
    apart = batch([(0, 10, -1), (10, 30, -1)], 5)
    assert amount_of([apart, apart]) == Amount(60, 10, 2 * (10**2 + 20**2) / 2)
    shared = batch([(0, 10, -1), (10, 14, 0), (14, 20, 0), (20, 22, 2)], 3)
    pairs = 10 * 5 + 4 * (10 + 2) + 6 * (10 + 3) + 2 * (16 + 1)
    assert amount_of([shared]) == Amount(22, 3, pairs)


@pytest.mark.parametrize("adapter", [LoraConfig(rank=4), FullConfig()])
def test_rates_give_what_the_formulas_of_the_plan_give(tmp_path, adapter):
    model = take_inventory(tiny_model_folder(tmp_path))
    trained = trainable(model, adapter)
    rates = Rates.of(lambda scored, length: flops_per_token(model, trained, scored, length))
    forward = Rates.of(lambda scored, length: forward_flops(model, scored, length))
    load = amount_of([batch([(0, 40, -1), (40, 80, -1)], 20)])
    assert rates.total(load) == pytest.approx(80 * flops_per_token(model, trained, 0.25, 40))
    assert forward.total(load) == pytest.approx(80 * forward_flops(model, 0.25, 40))
    work = Work(rates, forward, 1e9)
    assert work.flops(load, load) == rates.total(load) + forward.total(load)


def test_a_trained_head_costs_its_gradient_at_scored_places_only(tmp_path):
    model = take_inventory(tiny_model_folder(tmp_path))
    full = trainable(model, FullConfig())
    expected = 6 * model.body + 6 * 0.5 * model.head + 7 * 100 * model.query * model.layers
    assert flops_per_token(model, full, 0.5, 100) == pytest.approx(expected)
