"""Which evaluation is kept and when a run ends, on the loss of its own and on that of general data."""

import math

import pytest

from tunesmith.train.config import EarlyStoppingConfig
from tunesmith.train.early_stopping import is_over, note
from tunesmith.train.position import Position

GENERAL = EarlyStoppingConfig(watch="general", max_rise=0.1)


def told(position, settings, *evaluations):
    """For each evaluation whether it was the best, and whether the run is over then."""
    found = []
    for step, figures in enumerate(evaluations, 1):
        position.step = step
        found.append((note(position, figures, settings), is_over(position, settings)))
    return found


def test_patience_runs_out_after_evaluations_without_a_better_loss():
    settings = EarlyStoppingConfig(patience=2, min_delta=0.1)
    losses = [{"loss": loss} for loss in (2.0, 1.95, 1.5, 1.45, 1.6)]
    position = Position()
    assert told(position, settings, *losses) == [
        (True, False),
        (False, False),
        (True, False),
        (False, False),
        (False, True),
    ]
    assert (position.best_step, position.best_loss) == (3, 1.5)


def test_general_data_ends_a_run_when_its_loss_has_risen_too_far():
    position = Position(general_start=2.0, general_loss=2.0)
    rows = [
        {"loss": 1.5, "general_loss": 2.1},
        {"loss": 1.2, "general_loss": 2.19},
        {"loss": 1.0, "general_loss": 2.21},
    ]
    assert told(position, GENERAL, *rows) == [(True, False), (True, False), (False, True)]
    assert (position.best_step, position.best_loss) == (2, 1.2)


def test_within_the_bound_the_lowest_evaluation_loss_is_the_best():
    position = Position(general_start=2.0, general_loss=2.0)
    rows = [{"loss": 1.5, "general_loss": 2.1}, {"loss": 1.6, "general_loss": 2.0}]
    assert told(position, GENERAL, *rows) == [(True, False), (False, False)]


def test_without_an_evaluation_loss_the_newest_within_the_bound_is_the_best():
    position = Position(general_start=2.0, general_loss=2.0)
    rows = [{"general_loss": loss} for loss in (2.1, 1.9, 2.3)]
    assert told(position, GENERAL, *rows) == [(True, False), (True, False), (False, True)]
    assert position.best_step == 2


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_never_the_best(loss):
    position = Position(general_start=2.0, general_loss=2.0)
    assert told(position, GENERAL, {"loss": 1.0, "general_loss": loss}) == [(False, True)]
    assert told(Position(), None, {"loss": loss}) == [(False, False)]


def test_an_evaluation_loss_alone_does_not_look_at_general_data():
    position = Position(general_start=2.0, general_loss=2.0)
    settings = EarlyStoppingConfig(patience=1)
    assert told(position, settings, {"loss": 1.0, "general_loss": 9.0}) == [(True, False)]
