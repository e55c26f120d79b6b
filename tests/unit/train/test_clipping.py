"""Limits that follow the norms of a run: against the formulas, and the same after a resume."""

import json
import math
import random

import numpy as np
import pytest

from tunesmith.train.clipping import Clipper, PercentileClipper, ZScoreClipper, make_clipper
from tunesmith.train.config import AdaptiveClipConfig, TrainConfig


def norms(count=120, seed=3):
    noise = random.Random(seed)
    found = [abs(noise.gauss(1, 0.2)) for _ in range(count)]
    found[60] = 40.0
    return found


def test_without_a_history_the_limit_is_the_number_and_0_is_none():
    assert Clipper(1.5).limit(9.0) == 1.5
    assert Clipper(0.0).limit(9.0) == math.inf
    assert type(make_clipper(TrainConfig(clip_norm=2.0))) is Clipper


def test_the_zscore_follows_its_formula():
    settings = AdaptiveClipConfig(warmup=4, decay=0.9, threshold=2.0)
    clipper = ZScoreClipper(0.0, settings)
    first = [1.0, 1.2, 0.8, 1.4]
    assert [clipper.limit(norm) for norm in first] == [math.inf] * 4
    mean, variance = np.mean(first), np.var(first)
    z = (3.0 - mean) / math.sqrt(variance)
    limit = clipper.limit(3.0)
    assert limit == pytest.approx(mean + 4.0 / z * math.sqrt(variance))
    assert mean < limit < mean + 2 * math.sqrt(variance)
    assert clipper.variance == pytest.approx(0.9 * variance + 0.1 * (limit - mean) ** 2)
    assert clipper.mean == pytest.approx(0.9 * mean + 0.1 * limit)
    assert clipper.limit(clipper.mean) == math.inf


def test_a_spike_leaves_the_limit_of_the_next_one_low():
    clipper = ZScoreClipper(0.0, AdaptiveClipConfig())
    limits = [clipper.limit(norm) for norm in norms()]
    assert limits[60] < 2.0
    assert clipper.mean == pytest.approx(1.0, abs=0.15)


def test_equal_norms_are_not_clipped_for_their_last_digits():
    clipper = ZScoreClipper(0.0, AdaptiveClipConfig())
    assert all(norm <= clipper.limit(norm) for norm in (1 + 1e-9 * step for step in range(80)))


def test_the_percentile_is_that_of_all_norms_so_far():
    given = norms()
    clipper = PercentileClipper(0.0, AdaptiveClipConfig(rule="percentile", percentile=10, window=50))
    limits = [clipper.limit(norm) for norm in given]
    for step in (0, 10, 49, 80, 119):
        assert limits[step] == pytest.approx(np.percentile(given[max(0, step - 49) : step + 1], 10))


@pytest.mark.parametrize("rule", ["zscore", "percentile"])
def test_the_lower_of_both_limits_holds(rule):
    clipper = make_clipper(TrainConfig(clip_norm=0.5, adaptive_clip=AdaptiveClipConfig(rule=rule)))
    assert max(clipper.limit(norm) for norm in norms()) == 0.5


@pytest.mark.parametrize("rule", ["zscore", "percentile"])
@pytest.mark.parametrize("cut", [0, 7, 25, 61, 119])
def test_limits_after_a_resume_are_the_same(rule, cut):
    settings = TrainConfig(clip_norm=0.0, adaptive_clip=AdaptiveClipConfig(rule=rule, window=32))
    straight, first, second = (make_clipper(settings) for _ in range(3))
    expected = [straight.limit(norm) for norm in norms()]
    found = [first.limit(norm) for norm in norms()[:cut]]
    second.restore(json.loads(json.dumps(first.state())))
    found += [second.limit(norm) for norm in norms()[cut:]]
    assert found == expected
    assert second.state() == straight.state()
