"""What is said of single layers: dead ones, still ones, and updates out of proportion; and of forgetting."""

import pytest

from tunesmith.track.health import signs
from tunesmith.track.layers import layer_courses


def rows(layers, looks=4, rate=1e-3):
    """Looks at layers, each given by its gradient norm and update ratio."""
    figures = {}
    for number, (gradient, update) in enumerate(layers):
        figures |= {f"layers/{number:03}/grad_norm": gradient, f"layers/{number:03}/update_ratio": update}
    return [{"step": step, "train/lr": rate, **figures} for step in range(1, looks + 1)]


def test_healthy_layers_have_no_signs_and_are_listed():
    given = rows([(1.0, 1e-3), (0.5, 2e-3), (0.01, 1e-4)])
    assert signs(given) == []
    (_, second, _) = layer_courses(given)
    assert (second.name, second.grad_norm, second.update_ratio, second.looks) == ("001", 0.5, 2e-3, 4)
    assert signs(rows([(0.0, 0.0), (1.0, 1e-3)], looks=2)) == []
    assert layer_courses([{"step": 1, "train/loss": 2.0}]) == []


@pytest.mark.parametrize(("gradient", "words"), [(0.0, "no gradient either in 1"), (0.2, "gradients do come")])
def test_layers_that_do_not_change(gradient, words):
    (sign,) = signs(rows([(1.0, 1e-3), (gradient, 0.0), (1.0, 1e-3)]))
    assert sign.code == "W382"
    assert "layers 1" in sign.evidence[0]
    assert words in sign.evidence[1]


def test_layers_with_hardly_any_gradient():
    (sign,) = signs(rows([(1.0, 1e-3), (1e-6, 1e-3), (1.0, 1e-3)]))
    assert sign.code == "W383"
    assert "layers 1" in sign.evidence[0]


@pytest.mark.parametrize(("ratio", "proposed"), [(0.2, 1e-4), (1e-9, 1e-2)])
def test_updates_out_of_proportion_propose_another_rate(ratio, proposed):
    (sign,) = signs(rows([(1.0, ratio)] * 3))
    assert sign.code == "W384"
    assert sign.fixes[0].set == {"train.optimizer.lr": pytest.approx(proposed)}


def general(*losses):
    return [{"step": 10 * number, "eval/general_loss": loss} for number, loss in enumerate(losses)]


def test_what_is_forgotten_is_told_with_the_last_step_that_still_knew():
    (sign,) = signs(general(2.0, 2.05, 2.3))
    assert sign.code == "W385"
    assert sign.evidence[1] == "within 5% of the start until step 10"
    assert signs(general(2.0, 2.05)) == []
    assert signs(general(2.0)) == []
