"""What is read from losses at rising rates."""

import math

import pytest

from tunesmith.errors import NumericalError
from tunesmith.train.rates import has_diverged, read_curve, rounded

RATES = [10 ** (-6 + 5 * step / 99) for step in range(100)]  # 1e-6 to 1e-1


def bowl(rate: float) -> float:
    """Flat, then falling fastest at 1e-4, lowest at 1e-3, then gone."""
    place = math.log10(rate)
    fall = 1 / (1 + math.exp(-4 * (place + 4)))
    return 3 - 1.5 * fall + (20 * (place + 2.7) ** 2 if place > -2.7 else 0)


def test_the_rates_that_matter():
    curve = read_curve(RATES, [bowl(rate) for rate in RATES])
    assert 5e-5 < curve.steepest < 4e-4
    assert 1e-3 < curve.lowest < 5e-3
    assert curve.suggested <= curve.steepest
    assert curve.suggested in {5e-5, 1e-4, 2e-4}
    assert len(curve.rates) == len(curve.losses) == 100
    assert curve.to_json()["suggested"] == curve.suggested


def test_a_suggestion_keeps_away_from_the_edge():
    falling = [3 - 0.01 * step**1.5 / 10 for step in range(100)]  # fastest at the very end
    curve = read_curve(RATES, falling)
    assert curve.suggested <= curve.lowest / 4


@pytest.mark.parametrize(
    "losses",
    [[2.0 + 0.1 * step for step in range(100)], [2.0] * 100, [math.nan] * 100, [2.0, 1.9]],
    ids=["rises", "stays", "not a number", "two steps"],
)
def test_nothing_is_suggested_when_the_loss_fell_nowhere(losses):
    with pytest.raises(NumericalError, match="the loss fell at no rate") as caught:
        read_curve(RATES[: len(losses)], losses)
    assert caught.value.diagnostic.code == "E340"
    assert caught.value.diagnostic.fixes


def test_steps_that_are_not_finite_are_left_out():
    losses = [bowl(rate) for rate in RATES]
    losses[90:] = [math.inf] * 10
    assert len(read_curve(RATES, losses).rates) == 90


def test_a_loss_is_gone_at_twice_the_best_or_when_it_is_no_number():
    assert has_diverged([2.0, math.nan])
    assert not has_diverged([2.0] * 20)
    assert not has_diverged([2.0, 5.0, 2.0])  # too few to say
    assert has_diverged([2.0] * 20 + [40.0] * 3)


@pytest.mark.parametrize(("rate", "down"), [(3.4e-4, 2e-4), (5e-4, 5e-4), (9.9e-5, 5e-5), (1e-3, 1e-3), (0.12, 0.1)])
def test_rates_are_rounded_down_to_round_numbers(rate, down):
    assert rounded(rate) == down
