"""Each sign is seen where it is, with its fix, and nowhere else."""

import random

import pytest

from tunesmith.track.health import signs


def rows(losses, held_out=(), rate=1e-3):
    made = [{"step": step, "train/loss": loss, "train/lr": rate} for step, loss in enumerate(losses, 1)]
    return [*made, *({"step": step, "eval/loss": loss} for step, loss in held_out)]


def falling(count=100, start=2.0, seed=0):
    noise = random.Random(seed)
    return [start * (1 - 0.5 * step / count) + noise.uniform(-0.05, 0.05) for step in range(count)]


def codes(given):
    return [sign.code for sign in signs(given)]


def test_a_healthy_run_has_no_signs():
    assert signs(rows(falling())) == []
    assert signs(rows(falling(), held_out=[(25, 1.8), (50, 1.5), (100, 1.1)])) == []


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_no_sign(seed):
    assert codes(rows(falling(count=300, seed=seed))) == []


def test_a_loss_that_rises():
    (sign,) = signs(rows([2.0 + 0.01 * step for step in range(100)]))
    assert sign.code == "W343"
    assert sign.fixes[0].set == {"train.optimizer.lr": 1e-4}
    assert "peak learning rate 0.001" in sign.evidence


def test_a_loss_that_stays():
    assert codes(rows([2.0 + 0.001 * (step % 3) for step in range(100)])) == ["W344"]


def test_jumps_are_named_by_step():
    losses = falling()
    losses[60], losses[80] = 9.0, 7.0
    (sign,) = signs(rows(losses))
    assert sign.code == "W345"
    assert sign.evidence == ("steps 61 (9.00), 81 (7.00)",)
    assert sign.fixes[0].set == {"train.stability.on_spike": "skip"}


def test_learning_by_heart_names_the_best_step_even_in_a_short_run():
    (sign,) = signs(rows(falling(20), held_out=[(5, 1.5), (10, 1.2), (20, 1.4)]))
    assert sign.code == "W346"
    assert sign.fixes[0].set == {"train.steps": 10}


def test_a_second_half_that_taught_nothing():
    losses = [2.0 - 1.5 * min(1.0, step / 30) for step in range(200)]
    (sign,) = signs(rows(losses))
    assert sign.code == "W347"
    assert sign.fixes[0].set == {"train.steps": 101}


def test_a_short_run_says_nothing():
    assert signs(rows([2.0] * 10)) == []
    assert signs([]) == []
