"""Lent memory: nobody's twice at once, and nobody's again as soon as its loans are gone."""

import pytest
import torch
from tests.unit.models.test_fast_layer import fast
from tests.unit.models.test_forest import PAIRS, RANKINGS, batches

from tunesmith.models import scratch
from tunesmith.models.forward import score
from tunesmith.models.scratch import Loan, lend

LIKE = torch.zeros(1)


@pytest.fixture(autouse=True)
def nothing_lent(monkeypatch):
    monkeypatch.setattr(scratch, "FREE", {})


def held() -> dict[str, int]:
    """Free blocks by name."""
    return {name: len(free) for (name, _), free in scratch.FREE.items()}


def test_a_block_is_lent_again_when_its_loans_are_gone():
    loans: list[Loan] = []
    first, second = (lend("both", (3, 4), LIKE, loans) for _ in range(2))
    assert first.shape == (3, 4)
    assert first.data_ptr() != second.data_ptr()
    places = {first.data_ptr(), second.data_ptr()}
    assert held() == {"both": 0}
    loans.clear()
    assert held() == {"both": 2}
    assert {lend("both", (2, 5), LIKE, loans).data_ptr() for _ in range(2)} == places


def test_blocks_that_are_too_small_make_room_for_larger_ones():
    loans: list[Loan] = []
    for name in ("both", "both", "middle"):
        lend(name, (3, 4), LIKE, loans)
    loans.clear()
    assert lend("both", (5, 4), LIKE, loans).shape == (5, 4)
    assert held() == {"both": 0, "middle": 0}
    loans.clear()
    assert [len(block) for block in scratch.FREE["both", torch.float32]] == [20]


def test_types_and_names_are_kept_apart():
    loans: list[Loan] = []
    lend("both", (4,), LIKE, loans)
    loans.clear()
    lend("both", (4,), LIKE.bfloat16(), loans)
    lend("middle", (4,), LIKE, loans)
    assert held() == {"both": 0, "middle": 0} | {"both": 0}
    assert len(scratch.FREE["both", torch.float32]) == 1


def test_two_forward_passes_before_a_backward_pass_share_nothing():
    model = fast("llama")
    one, _ = batches(PAIRS)
    other, _ = batches(RANKINGS)
    alone = []
    for batch in (one, other):
        model.zero_grad()
        score(model, batch).logprobs.sum().backward()
        alone.append({name: p.grad.clone() for name, p in model.named_parameters()})
    model.zero_grad()
    sums = [score(model, batch).logprobs.sum() for batch in (one, other)]
    for total in sums:
        total.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, alone[0][name] + alone[1][name], atol=1e-6, rtol=1e-5)


def test_all_blocks_come_back_after_a_step_and_after_a_pass_without_gradient():
    model = fast("llama")
    batch, _ = batches(PAIRS)
    score(model, batch).logprobs.sum().backward()
    layers = len(model.model.layers)
    after = held()
    assert after["both"] == layers
    with torch.no_grad():
        score(model, batch)
    assert held() == after
    score(model, batch)  # and of one whose loss nobody asked for
    assert held() == after
