"""Weights in bf16 without masters: what is added arrives, on average or to the bits that a second number holds."""

import pytest
import torch
from tests.unit.train.test_optimizers import CASES, RATES, Network, backward, every, train
from torch import nn

from tunesmith.distributed.mesh import Mesh
from tunesmith.train.holding import Kahan, Mastered, Short, Stochastic, held_of, rounded_by_chance
from tunesmith.train.in_backward import BackwardOptimizer
from tunesmith.train.optimizer import Optimizer
from tunesmith.train.optimizers import SGD

ways = pytest.mark.parametrize("rounding", ["stochastic", "kahan"])


def rounded(settings, rounding):
    return settings.model_copy(update={"rounding": rounding})


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rounding_by_chance_is_right_on_average():
    """The mean of 20,000 roundings lies within 5 standard deviations of every number, and each is a neighbour of it."""
    values = torch.cat([torch.randn(40, generator=generator(0)) * 10.0**power for power in (-30, -3, 0, 5)])
    found = torch.stack([rounded_by_chance(values, generator(seed)).double() for seed in range(20_000)])
    low, high = found.amin(0), found.amax(0)
    assert (low <= values).all()
    assert (high >= values).all()
    step = (values.abs().log2().floor() - 7).exp2().double()  # between neighbours in bf16
    assert ((high - low) <= step).all()
    share = (values.double() - low) / step
    deviation = step * (share * (1 - share) / 20_000).sqrt()
    assert ((found.mean(0) - values.double()).abs() <= 5 * deviation + 1e-12 * step).all()


def test_what_bf16_can_hold_is_left_alone():
    values = torch.tensor([0.0, -0.0, 1.0, -1.0078125, 2.0**-133, float("inf"), -float("inf"), 3.3895313892515355e38])
    for seed in range(50):
        assert torch.equal(rounded_by_chance(values, generator(seed)).float(), values)
    assert rounded_by_chance(torch.tensor([float("nan")]), generator(0)).isnan().all()
    assert rounded_by_chance(torch.zeros(0), generator(0)).shape == (0,)


def descent(rounding, steps, size, count=4000, even=True):
    """Weights of 1 after steps of plain gradient descent by `size` each, or about that, and what they should be."""
    weight = nn.Parameter(torch.ones(count, dtype=torch.bfloat16))
    optimizer = Optimizer({"w": weight}, SGD(lr=1.0, momentum=0.0, rounding=rounding))
    optimizer.set_rate(1.0)
    exact = torch.ones(count, dtype=torch.float64)
    for step in range(steps):
        optimizer.clear()
        gradient = torch.full((count,), size) if even else size * (1 + torch.randn(count, generator=generator(step)))
        optimizer.masters["w"].grad = gradient
        optimizer.step()
        exact -= gradient.double()
    return optimizer.held["w"], exact


def test_updates_below_half_a_step_move_weights_by_chance():
    """1,000 updates of 2^-14 each, a 64th of what rounding to the nearest leaves of them: on average they arrive."""
    held, _ = descent("stochastic", 1000, 2.0**-14)
    assert isinstance(held, Stochastic)
    mean = held.parameter.double().mean().item()
    assert mean == pytest.approx(1 - 1000 * 2**-14, abs=1e-3)
    alone = torch.ones((), dtype=torch.bfloat16)
    for _ in range(1000):
        alone -= 2.0**-14
    assert alone == 1


@pytest.mark.parametrize(("size", "even"), [(2.0**-14, True), (3.3e-5, True), (3.3e-5, False)])
def test_tiny_updates_add_up_with_a_second_number(size, even):
    """5,000 of them, each off by 2^-18 at most, which is half of what 16 bits can tell below 1.

    Errors of uneven updates cancel: 5 standard deviations of so many even ones. In bf16 alone nothing would move.
    """
    held, exact = descent("kahan", 5000, size, even=even)
    assert isinstance(held, Kahan)
    off = held.parameter.double() + held.compensation.double() - exact
    assert off.abs().max() <= (5000 if even else 5 * (5000 / 3) ** 0.5) * 2**-18
    assert off.abs().max() < 0.1 * (1 - exact).min()
    assert held.compensation.abs().max() <= 2**-9  # the weight is the nearest in bf16


def test_the_way_follows_the_type():
    half, single = nn.Parameter(torch.ones(2, dtype=torch.float16)), nn.Parameter(torch.ones(2))
    short = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    assert isinstance(held_of("w", half, "kahan", 0), Mastered)
    assert held_of("w", single, "stochastic", 0).master is single
    assert isinstance(held_of("w", short, "masters", 0), Mastered)
    assert isinstance(held_of("w", short, "kahan", 0), Kahan)


@ways
@every
def test_runs_go_on_to_the_bit_and_updates_in_backward_are_the_same(settings, rounding):
    settings = rounded(settings, rounding)
    steady, stopped, resumed, inside = (Network(torch.bfloat16) for _ in range(4))
    train(steady, Optimizer(steady.named(), settings, seed=5), range(4))
    first = Optimizer(stopped.named(), settings, seed=5)
    train(stopped, first, range(2))
    with first.averaged():
        weights = {name: value.clone() for name, value in stopped.state_dict().items()}
        state = {name: tensor.clone() for name, tensor in first.state().items()}
    resumed.load_state_dict(weights)
    second = Optimizer(resumed.named(), settings, seed=5)
    second.restore(state)
    train(stopped, first, range(2, 4))
    train(resumed, second, range(2, 4))
    optimizer = BackwardOptimizer(inside.named(), settings, seed=5)
    for step in range(4):
        optimizer.clear()
        optimizer.set_rate(RATES[step])
        optimizer.complete(lambda: True)
        backward(inside, step)
        optimizer.finish(Mesh())
    wanted = steady.state_dict()
    for model in (stopped, resumed, inside):
        assert [name for name, value in model.state_dict().items() if not torch.equal(value, wanted[name])] == []


@ways
def test_no_master_takes_memory_between_updates(rounding):
    model = Network(torch.bfloat16)
    optimizer = Optimizer(model.named(), rounded(CASES[0], rounding))
    train(model, optimizer, range(1))
    assert all(isinstance(held, Short) for held in optimizer.held.values())
    assert all(held.master.untyped_storage().nbytes() == 4 for held in optimizer.held.values())
    beside = [value for name, value in optimizer.state().items() if name.endswith(("master", "compensation"))]
    numbers = sum(value.numel() for _, value in model.named().items())
    assert sum(value.nbytes for value in beside) == (2 * numbers if rounding == "kahan" else 0)


def test_the_seed_decides_what_chance_does():
    models = [Network(torch.bfloat16) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        train(model, Optimizer(model.named(), rounded(CASES[0], "stochastic"), seed=seed), range(2))
    one, two, three = (model.lm_head.weight for model in models)
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_gradients_of_many_microbatches_add_up_as_in_fp64():
    """256 of them, in fp32 whatever holds the weights: within 2^-20 of the sum of sizes, where bf16 is off by 2^-6."""
    for rounding in ("masters", "stochastic", "kahan"):
        weight = nn.Parameter(torch.zeros(500, dtype=torch.bfloat16))
        optimizer = Optimizer({"w": weight}, rounded(CASES[0], rounding))
        exact, sizes, plain = (torch.zeros(500, dtype=torch.float64) for _ in range(3))
        plain = plain.bfloat16()
        for seed in range(256):
            given = (torch.randn(500, generator=generator(seed)) + 0.5).bfloat16()
            (weight * given).sum().backward()
            exact, sizes, plain = exact + given.double(), sizes + given.double().abs(), plain + given
        (found,) = optimizer.gradients()
        assert found.dtype == torch.float32
        assert ((found.double() - exact).abs() <= 2**-20 * sizes).all()
        assert ((plain.double() - exact).abs() > 2**-10 * sizes).any()
