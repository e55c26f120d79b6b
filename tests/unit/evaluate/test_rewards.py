import math

import numpy as np
import pytest

from tunesmith.evaluate.classification import (
    class_detail,
    class_scores,
    confusion,
    macro_f1,
    probabilities,
    regression_scores,
)
from tunesmith.evaluate.metrics import proportion
from tunesmith.evaluate.rewards import (
    Comparison,
    Ranked,
    Steps,
    best_margins,
    feedback_scores,
    first_error,
    order_share,
    pair_detail,
    pair_scores,
    process_scores,
    ranking_scores,
)
from tunesmith.evaluate.statistics import (
    area_under_curve,
    calibration,
    calibration_error,
    correlation,
    rank_correlation,
    ranks,
    sigmoid,
)


def pair(chosen: float, rejected: float, lengths: tuple[int, int] = (5, 5), source: str = "a") -> Comparison:
    return Comparison(chosen, rejected, *lengths, source, "f:1")


def test_accuracy_counts_a_tie_as_one_half_and_has_wilsons_interval() -> None:
    found = pair_scores([pair(2, 1), pair(0, 3), pair(1, 1), pair(4, 0)])
    assert found["accuracy"].value == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert found["margin"].value == pytest.approx((1 - 3 + 0 + 4) / 4)
    # Wilson at 80 of 100 by hand: (0.8192073 +- 1.959964 sqrt(0.0016 + 0.0000960)) / 1.0384146
    score = proportion([1.0] * 80 + [0.0] * 20)
    assert (score.low, score.high) == (pytest.approx(0.711171, abs=1e-6), pytest.approx(0.866633, abs=1e-6))


def test_calibration_by_hand() -> None:
    # bins of width 0.05 from 0.5: two predictions at 0.62 (one right), two at 0.99 (both right)
    sure, right = np.array([0.62, 0.62, 0.99, 0.99]), np.array([1.0, 0.0, 1.0, 1.0])
    assert calibration_error(sure, right, 0.5) == pytest.approx((2 * 0.12 + 2 * 0.01) / 4)
    bins = calibration(sure, right, 0.5)
    assert [(each.low, each.right.n) for each in bins] == [(pytest.approx(0.6), 2), (pytest.approx(0.95), 2)]
    assert bins[0].right.value == 0.5
    assert calibration(np.array([1.0]), np.array([1.0]), 0.5)[0].high == 1


def test_confidence_is_the_logistic_of_the_margin() -> None:
    assert sigmoid([0.9]) == pytest.approx(1 / (1 + math.exp(-0.9)))
    assert np.isfinite(sigmoid([-1e4, 1e4])).all()
    found = pair_scores([pair(2.0, 0.0)] * 4 + [pair(0.0, 2.0)])
    assert found["calibration_error"].value == pytest.approx(1 / (1 + math.exp(-2.0)) - 0.8)


def test_breakdown_parts_sources_and_lengths() -> None:
    pairs = [
        pair(1, 0, (9, 4), "x"),
        pair(1, 0, (4, 9), "x"),
        pair(0, 1, (5, 5), "y"),
        pair(0, 1, (1, 9), "y"),
    ]
    parts = pair_detail(pairs)["breakdown"]
    values = {name: (part["accuracy"]["value"], part["accuracy"]["n"]) for name, part in parts.items()}
    assert values["source x"] == (1.0, 2)
    assert values["source y"] == (0.0, 2)
    assert values["chosen longer"] == (1.0, 1)
    assert values["chosen shorter"] == (0.5, 2)
    assert values["equal length"] == (0.0, 1)
    quarters = [part["longer_by"] for name, part in parts.items() if "quarter" in name]
    assert quarters == [[-8, -8], [-5, -5], [0, 0], [5, 5]]
    assert parts["source y"]["longer_by"] == [-8, 0]


def test_rewards_that_measure_length_are_found_out() -> None:
    lengths = [(8, 2), (3, 9), (30, 10), (4, 5)]
    pairs = [pair(0.1 * one, 0.1 * other, (one, other)) for one, other in lengths]
    found = pair_scores(pairs)
    assert found["length_correlation"].value == pytest.approx(1)
    assert found["margin_length_correlation"].value == pytest.approx(1)


def test_correlations_by_hand() -> None:
    one, other = np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])
    assert correlation(one, other) == pytest.approx(0.5)
    assert ranks(np.array([10.0, 20.0, 10.0, 5.0])).tolist() == [2.5, 4.0, 2.5, 1.0]
    assert rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([1.0, 10.0, 100.0])) == pytest.approx(1)
    assert math.isnan(correlation(one, np.ones(3)))
    found = regression_scores([1.0, 2.0, 3.0], [1.0, 3.0, 2.0])
    assert found["pearson"].value == pytest.approx(0.5)
    assert found["mse"].value == pytest.approx(2 / 3)


def test_rankings_by_hand() -> None:
    assert order_share(Ranked((3.0, 2.0, 1.0), (5, 4, 3))) == 1
    assert order_share(Ranked((2.0, 3.0, 1.0), (5, 4, 3))) == pytest.approx(2 / 3)
    assert order_share(Ranked((2.0, 3.0), (4, 4))) is None
    assert order_share(Ranked((2.0, 2.0), (5, 4))) == 0.5
    found = ranking_scores([Ranked((2.0, 3.0, 1.0), (5, 4, 3)), Ranked((1.0, 0.0), (1, 0))])
    assert found["accuracy"].value == pytest.approx((2 / 3 + 1) / 2)
    assert found["best_first"].value == 0.5


def test_feedback_by_hand() -> None:
    scores, good = np.array([3.0, 1.0, 2.0, 1.0]), np.array([1.0, 1.0, 0.0, 0.0])
    assert area_under_curve(scores, good) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    found = feedback_scores([2.0, -1.0, -3.0], [1, 1, 0])
    assert found["accuracy"].value == pytest.approx(2 / 3)
    assert found["auc"].value == 1
    assert "auc" not in feedback_scores([2.0, 1.0], [1, 1])


def test_process_by_hand() -> None:
    records = [Steps((1.0, -1.0, 2.0), (1, 0, 0)), Steps((1.0, 2.0), (1, 1)), Steps((-1.0, 2.0), (1, 0))]
    found = process_scores(records)
    assert found["step_accuracy"].value == pytest.approx((2 + 2 + 0) / 7)
    assert found["first_error_accuracy"].value == pytest.approx(2 / 3)
    assert first_error([True, True]) == 2


def test_classes_by_hand() -> None:
    labels, found = np.array([0, 0, 1, 1, 1, 2]), np.array([0, 1, 1, 1, 0, 1])
    values = np.eye(3)[found] * 4
    matrix = confusion(found, labels, 3)
    assert matrix.tolist() == [[1, 1, 0], [1, 2, 0], [0, 1, 0]]
    scores = class_scores(values, labels)
    assert scores["accuracy"].value == 0.5
    # F1: class 0 is 2*1/(2+2), class 1 is 2*2/(4+3), class 2 is 0
    assert scores["macro_f1"].value == pytest.approx((0.5 + 4 / 7 + 0) / 3)
    assert macro_f1(found, labels, 4) == pytest.approx((0.5 + 4 / 7 + 0) / 3)  # an absent class counts nothing
    detail = class_detail(values, labels, ("a", "b", "c"))
    assert detail["classes"]["b"]["precision"]["value"] == 0.5
    assert detail["classes"]["b"]["recall"]["value"] == pytest.approx(2 / 3)
    assert detail["classes"]["c"]["precision"] is None
    assert detail["classes"]["c"]["n"] == 1
    assert detail["confusion"] == {"classes": ["a", "b", "c"], "counts": matrix.tolist()}
    right, wrong = math.exp(4) / (math.exp(4) + 2), 1 / (math.exp(4) + 2)
    assert probabilities(values)[0].tolist() == pytest.approx([right, wrong, wrong])
    assert scores["log_loss"].value == pytest.approx(-(3 * math.log(right) + 3 * math.log(wrong)) / 6)


def test_the_best_answer_is_compared_with_the_mean_of_those_below_it() -> None:
    records = [Ranked((2.0, 3.0, 1.0), (5, 4, 4)), Ranked((1.0, 3.0, 0.0), (2, 2, 1)), Ranked((1.0, 2.0), (1, 1))]
    assert best_margins(records) == [0.0, 2.0]
