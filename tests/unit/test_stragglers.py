"""A rank that holds up the others is found in the seconds that each works by itself."""

import pytest

from tunesmith.distributed.stragglers import WINDOW, Stragglers


def heard(rows):
    judge = Stragglers()
    return [found for row in rows if (found := judge.note(row)) is not None]


@pytest.mark.row("X5")
def test_x05_five_times_slower_is_told_once_with_the_share_of_time():
    (told,) = heard([(0.1, 0.5, 0.1)] * 3 * WINDOW)
    assert told.code == "W466"
    assert told.message == "rank 1 is 5.0 times slower than the others: they wait 80% of a step"
    assert told.evidence[1] == "rank 1: 0.500 s of own work in a step"


@pytest.mark.row("X5")
def test_x05_a_rank_that_caught_up_is_told_again_when_it_lags_again():
    assert len(heard([(0.5, 0.1)] * WINDOW + [(0.1, 0.1)] * 2 * WINDOW + [(0.5, 0.1)] * 2 * WINDOW)) == 2


@pytest.mark.row("X5")
@pytest.mark.parametrize(
    "rows",
    [
        [(0.1, 0.5)] * (WINDOW - 1),  # too few steps to say
        [(0.1, 0.29)] * 2 * WINDOW,  # less than three times
        [(0.001, 0.015)] * 2 * WINDOW,  # too little time to matter
        [(0.1, 0.1)] * WINDOW + [(0.1, 2.0)] * (WINDOW // 2 - 1),  # a few slow steps
        [(0.5,)] * 2 * WINDOW,  # nobody to compare with
    ],
)
def test_x05_no_false_alarm(rows):
    assert heard(rows) == []
