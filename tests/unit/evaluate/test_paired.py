"""Paired statistics against values worked out by hand or printed in textbooks."""

import numpy as np
import pytest

from tunesmith.evaluate.metrics import proportion
from tunesmith.evaluate.paired import Difference, binomial_p, difference, holm, score_of
from tunesmith.evaluate.suite import Measure, Result

RIGHT = Measure("accuracy", binary=True)


def results(values, measure="accuracy", weights=None, categories=None) -> dict[str, Result]:
    found = {}
    for at, value in enumerate(values):
        weight = {} if weights is None else {measure: float(weights[at])}
        category = "" if categories is None else categories[at]
        found[f"e{at}"] = Result("t", f"e{at}", category, "q", "a", "r", {measure: float(value)}, weight)
    return found


def compare(first, second, measure=RIGHT, category="") -> Difference:
    found = difference(first, second, measure, ("a", "b"), category)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("few", "many", "p"),
    [(0, 0, 1.0), (0, 5, 2 / 32), (5, 0, 2 / 32), (1, 9, 22 / 1024), (5, 5, 1.0), (3, 12, 0.03515625), (0, 1, 1.0)],
)
def test_binomial_p_is_exact(few, many, p):
    assert binomial_p(few, many) == pytest.approx(p, abs=1e-12)


def test_binomial_p_of_many_tosses_stays_finite():
    assert 0 < binomial_p(4800, 5200) < 1e-4
    assert binomial_p(0, 5000) < 1e-300 or binomial_p(0, 5000) == 0


def test_mcnemar_counts_what_changed_alone():
    """30 exercises: 9 gained, 1 lost; p = 2 (1 + 10) / 2^10."""
    one, other = [0] * 9 + [1] + [1] * 15 + [0] * 5, [1] * 9 + [0] + [1] * 15 + [0] * 5
    found = compare(results(one), results(other))
    assert (found.better, found.worse, found.n, found.test) == (9, 1, 30, "mcnemar")
    assert found.p == pytest.approx(22 / 1024)
    assert found.change.value == pytest.approx(8 / 30)
    assert found.change.low <= found.change.value <= found.change.high
    assert found.first == pytest.approx(16 / 30)


def test_the_interval_is_that_of_paired_differences():
    """Both models differ by 0.1 everywhere, however much exercises differ: no doubt is left."""
    values = np.linspace(0, 0.8, 40)
    measure = Measure("f1")
    found = compare(results(values, "f1"), results(values + 0.1, "f1"), measure)
    assert (found.change.low, found.change.high) == (pytest.approx(0.1), pytest.approx(0.1))
    assert (found.better, found.test) == (40, "sign")
    assert found.p == pytest.approx(2 * 0.5**40)


def test_the_bootstrap_of_a_mean_is_near_the_normal_interval():
    draws = np.random.default_rng(0)
    gaps = draws.normal(0.05, 0.2, 400)
    found = compare(results([0.0] * 400, "f1"), results(gaps, "f1"), Measure("f1"))
    half = 1.96 * gaps.std() / 20
    assert found.change.low == pytest.approx(gaps.mean() - half, abs=0.003)
    assert found.change.high == pytest.approx(gaps.mean() + half, abs=0.003)


def test_lower_is_better_for_a_loss_and_longer_texts_count_more():
    measure = Measure("loss", lower=True)
    first, second = results([2.0, 1.0], "loss", [10, 30]), results([1.0, 1.2], "loss", [10, 30])
    found = compare(first, second, measure)
    assert found.first == pytest.approx((20 + 30) / 40)
    assert found.second == pytest.approx((10 + 36) / 40)
    assert found.change.value == pytest.approx(0.1)
    assert (found.better, found.worse) == (1, 1)
    assert score_of(list(first.values()), measure).value == pytest.approx(1.25)


def test_only_shared_exercises_of_a_category_are_compared():
    groups = ["x", "x", "y", "y"]
    first, second = results([0, 0, 1, 1], categories=groups), results([1, 1, 0, 1], categories=groups)
    del second["e0"]
    assert compare(first, second).n == 3
    assert compare(first, second, category="x").change.value == 1.0
    assert compare(first, second, category="y").change.value == -0.5
    assert difference(first, second, RIGHT, ("a", "b"), "z") is None


def test_holm_is_that_of_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_verdict_needs_interval_and_test():
    def judged(change: tuple[float, float, float], p: float) -> str:
        from tunesmith.evaluate.metrics import Score

        score = Score(*change, 10)
        return Difference("t", "m", "", "a", "b", 10, 0, 0, score, 0, 0, "sign", p, p_adjusted=p).verdict

    assert judged((-0.2, -0.3, -0.1), 0.01) == "worse"
    assert judged((0.2, 0.1, 0.3), 0.01) == "better"
    assert judged((0.2, 0.1, 0.3), 0.06) == "open"
    assert judged((0.2, -0.1, 0.3), 0.01) == "open"


def test_shares_have_wilson_intervals_and_means_do_not():
    values = [1.0, 1.0, 0.0, 1.0]
    assert score_of(list(results(values).values()), RIGHT) == proportion(values)
    assert score_of(list(results(values, "f1").values()), Measure("f1")).value == 0.75
