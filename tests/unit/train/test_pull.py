"""A pull to the start and an average of the weights, against their formulas."""

import pytest
import torch
from torch import nn

from tunesmith.train.config import EmaConfig
from tunesmith.train.ema import Average
from tunesmith.train.optimizer import Optimizer
from tunesmith.train.optimizers import AdamW
from tunesmith.train.pull import Factors, Pull


def parameters(*shapes):
    torch.manual_seed(0)
    return {f"layers.{index}.w": nn.Parameter(torch.randn(shape)) for index, shape in enumerate(shapes)}


def moved(optimizer, pull=None, steps=1):
    """Some updates with made-up gradients; returns the distance before the last one."""
    far = 0.0
    for step in range(steps):
        for number, parameter in enumerate(optimizer.parameters.values()):
            parameter.grad = torch.sin(torch.arange(parameter.numel()) + step + number).view_as(parameter)
        far = 0.0 if pull is None else pull.apply()
        optimizer.step()
    return far


def test_weights_go_a_share_of_the_way_back_beside_the_update():
    settings = AdamW(lr=0.1)
    plain, drawn = (Optimizer(parameters((4, 3), (5,)), settings) for _ in range(2))
    pull = Pull(drawn, 2.0)
    start = {name: value.detach().clone() for name, value in drawn.masters.items()}
    moved(plain, steps=3)
    moved(drawn, steps=3)
    away = {name: value.detach() - start[name] for name, value in drawn.masters.items()}
    expected = {name: value.detach() - 0.1 * 2.0 * away[name] for name, value in plain.masters.items()}
    moved(plain)
    before = {name: value.detach().clone() for name, value in plain.masters.items()}
    far = moved(drawn, pull)
    size = torch.cat([value.flatten() for value in away.values()]).norm().item()
    assert far == pytest.approx(size, rel=1e-6)
    for name, value in drawn.masters.items():  # the update is the same: the pull is no part of the optimiser's means
        step = before[name] - (expected[name] + 0.2 * away[name])
        assert step.abs().max() > 0
        torch.testing.assert_close(value.detach(), before[name] - 0.2 * away[name], atol=1e-6, rtol=1e-5)


def test_nothing_is_drawn_at_the_start():
    optimizer = Optimizer(parameters((4, 3)), AdamW(lr=0.1))
    assert Pull(optimizer, 5.0).apply() == 0.0


@pytest.mark.parametrize("a_is_trained", [True, False])
def test_factors_follow_the_gradient_of_half_the_squared_update(a_is_trained):
    given = parameters((2, 6), (5, 2))
    a, b = given.values()
    scale, strength, rate = 1.5, 0.3, 0.1
    loss = strength / 2 * (scale * b @ a).square().sum()
    slopes = torch.autograd.grad(loss, (a, b))
    old = a.detach().clone(), b.detach().clone()
    trained = given if a_is_trained else {"layers.1.w": b}
    optimizer = Optimizer(trained, AdamW(lr=rate))
    pair = Factors("layers.0.w" if a_is_trained else a.detach(), "layers.1.w", scale)
    far = Pull(optimizer, strength, [pair]).apply()
    assert far == pytest.approx((scale * old[1] @ old[0]).norm().item(), rel=1e-5)
    torch.testing.assert_close(b.detach(), old[1] - rate * slopes[1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(a.detach(), old[0] - rate * slopes[0] if a_is_trained else old[0], atol=1e-6, rtol=1e-5)


def test_an_average_follows_its_formula_and_forgets_the_start():
    masters = parameters((3,))
    (weights,) = masters.values()
    average = Average(masters, EmaConfig(decay=0.5))
    plain = Average(masters, EmaConfig(decay=0.5, ramp=False))
    expected, slow = weights.detach().clone(), weights.detach().clone()
    for step in range(6):
        with torch.no_grad():
            weights.add_(1.0)
        decay = min(0.5, (1 + step) / (10 + step))
        expected, slow = decay * expected + (1 - decay) * weights.detach(), 0.5 * slow + 0.5 * weights.detach()
        average.follow(step)
        plain.follow(step)
    torch.testing.assert_close(average.values["layers.0.w"], expected)
    torch.testing.assert_close(plain.values["layers.0.w"], slow)


def test_the_average_is_in_the_parameters_only_while_it_is_looked_at():
    optimizer = Optimizer(parameters((4, 3)), AdamW(lr=0.1))
    optimizer.average = Average(optimizer.masters, EmaConfig(decay=0.9, ramp=False))
    for step in range(3):
        moved(optimizer)
        optimizer.average.follow(step)
    trained = optimizer.masters["layers.0.w"].detach().clone()
    with optimizer.averaged():
        assert torch.equal(optimizer.parameters["layers.0.w"], optimizer.average.values["layers.0.w"])
        assert torch.equal(optimizer.state()["layers.0.w.master"], trained)
    assert torch.equal(optimizer.masters["layers.0.w"], trained)
    assert not torch.equal(optimizer.average.values["layers.0.w"], trained)
