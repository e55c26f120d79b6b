"""Schedules at their corners, by hand."""

import math

import pytest

from tunesmith.train.config import ScheduleConfig, TrainConfig
from tunesmith.train.optimizers import SGD, AdamW
from tunesmith.train.schedule import factor, settled, warmup_steps


def curve(total=10, **settings):
    schedule = ScheduleConfig(**settings)
    return [round(factor(schedule, step, total), 6) for step in range(total)]


def test_warmup_is_a_share_rounded_up_or_a_number_of_steps():
    assert warmup_steps(ScheduleConfig(warmup=0.03), 10) == 1
    assert warmup_steps(ScheduleConfig(warmup=0.03), 100) == 3
    assert warmup_steps(ScheduleConfig(warmup=4), 100) == 4
    assert warmup_steps(ScheduleConfig(warmup=400), 100) == 100
    assert warmup_steps(ScheduleConfig(warmup=0), 100) == 0


def test_first_warmup_step_is_not_zero():
    assert curve(name="constant", warmup=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", [1.0, 0.8, 0.6, 0.4, 0.2]),
        ("cosine", [1.0, 0.904508, 0.654508, 0.345492, 0.095492]),
        ("wsd", [1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_decay_without_warmup(name, expected):
    assert curve(5, name=name, warmup=0) == expected


def test_a_rising_rate_grows_by_the_same_factor_up_to_the_peak():
    assert curve(4, name="rising", warmup=0, min_ratio=1e-3) == [0.001, 0.01, 0.1, 1.0]
    assert curve(2, name="rising", warmup=0) == [1e-5, 1.0]


def test_wsd_decays_over_its_share_to_the_floor():
    assert curve(10, name="wsd", warmup=2, decay=0.4, min_ratio=0.5)[5:] == [1.0, 1.0, 0.875, 0.75, 0.625]


def test_inverse_square_root_starts_at_the_peak():
    values = curve(17, name="inverse_sqrt", warmup=4)
    assert values[3] == 1.0
    assert values[15] == 0.5


def test_min_ratio_is_the_floor():
    assert min(curve(200, name="cosine", warmup=0, min_ratio=0.1)) >= 0.1


def test_an_automatic_warmup_is_as_long_as_the_mean_of_squares_takes():
    schedule = settled(TrainConfig(optimizer=AdamW(beta2=0.95), schedule=ScheduleConfig(warmup="auto")))
    assert warmup_steps(schedule, 100) == 40
    assert AdamW().settling_steps == 2000
    assert SGD().settling_steps is None


def test_an_exponential_warmup_is_its_formula_times_the_shape_behind_it():
    values = curve(40, name="constant", warmup=10, warmup_shape="exponential")
    assert values == [round(1 - math.exp(-2 * (step + 1) / 10), 6) for step in range(40)]
    falling = curve(40, name="linear", warmup=10, warmup_shape="exponential")
    assert falling[:10] == values[:10]
    assert falling[25] == round(values[25] * 0.5, 6)
