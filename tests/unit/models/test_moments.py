"""The compiled step of AdamW in 8 bits against its form in torch, and its tables against the halves they stand for."""

import pytest
import torch
from torch import nn

from tunesmith.models.blockwise import codes_of_halves
from tunesmith.models.native import build, moments
from tunesmith.models.native.moments import CELLS, Rates, cells_of
from tunesmith.train.optimizers import AdamW8bit
from tunesmith.train.optimizers.adamw8bit import AdamW8bitRule, by_torch, empty_moments

SETTINGS = AdamW8bit(weight_decay=0.1)
compiled = pytest.mark.skipif(build.library() is None, reason=f"no kernels here: {build.state()}")


def gradient_of(seed: int, shape: tuple[int, ...], size: float) -> torch.Tensor:
    """Numbers of very different sizes, some of them 0, and a block of zeros."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(shape, generator=generator) ** 3 * 10 ** torch.randn(shape, generator=generator)
    found[found.abs() < 0.01] = 0
    found.view(-1)[256:512] = 0
    return found * size


def trained(shape, size, steps=6):
    """A parameter and its state after some steps, with the kernel or without."""
    torch.manual_seed(1)
    parameter = nn.Parameter(torch.randn(shape))
    rule = AdamW8bitRule([{"params": [parameter], "names": ["w"], "lr": 1e-2, "weight_decay": 0.1}], SETTINGS)
    for step in range(steps):
        parameter.grad = gradient_of(step, shape, size)
        rule.step()
    return parameter.detach(), rule.state[parameter]


@compiled
@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-18, 1e6])
@pytest.mark.parametrize("shape", [(64, 64), (33, 155), (300, 257)])
def test_the_kernel_takes_the_same_step(shape, size, monkeypatch):
    """But for square roots, of which torch's may be off by a unit in the last place: codes equal, weights to 2^-22."""
    ours, state = trained(shape, size)
    with monkeypatch.context() as context:
        context.setattr(moments, "serves", lambda weight: False)
        theirs, wanted = trained(shape, size)
    assert (ours - theirs).abs().max() <= 2**-22 * theirs.abs().max()
    assert state.keys() == wanted.keys()
    for kind in ("exp_avg", "root"):
        assert (state[kind] != wanted[kind]).sum() <= 1e-4 * ours.numel()
        torch.testing.assert_close(state[f"{kind}_scale"], wanted[f"{kind}_scale"], atol=0, rtol=1e-6)
        assert state[kind].dtype == wanted[kind].dtype == torch.uint8


@compiled
def test_the_kernel_does_not_depend_on_the_number_of_threads():
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(trained((200, 311), 1.0)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@compiled
def test_the_kernel_touches_nothing_beyond_its_numbers():
    around = torch.full((5000 + 32,), 7.0)
    weight = around[16:-16]
    weight.copy_(torch.ones(5000))
    state = empty_moments(weight)
    parameter = nn.Parameter(weight)
    assert parameter.data_ptr() == weight.data_ptr()
    rule = AdamW8bitRule([{"params": [parameter], "names": ["w"], "lr": 1e-2, "weight_decay": 0.0}], SETTINGS)
    parameter.grad = torch.ones(5000)
    rule.step()
    assert (around[:16] == 7).all()
    assert (around[-16:] == 7).all()
    torch.testing.assert_close(weight, torch.full((5000,), 0.99))
    assert {kind: len(value) for kind, value in state.items()} == {
        kind: len(value) for kind, value in rule.state[parameter].items() if value.ndim
    }


@pytest.mark.parametrize("signed", [True, False])
def test_a_cell_gives_the_code_of_each_of_its_halves(signed):
    nearest = codes_of_halves(signed)
    cells, inside = cells_of(nearest), len(nearest) // CELLS
    places = torch.arange(len(nearest))
    cell = cells[places // inside]
    found = torch.where(places % inside < cell >> 16, cell & 255, cell >> 8 & 255)
    assert torch.equal(found.to(torch.uint8), nearest)


def test_what_the_kernel_does_not_take_goes_to_torch():
    assert not moments.serves(torch.zeros(4, 4, dtype=torch.bfloat16))
    assert not moments.serves(torch.zeros(4, 4).T[1:])
    weight, state = torch.ones(4096), empty_moments(torch.ones(4096))
    by_torch(weight, torch.ones(4096), state, SETTINGS, Rates(0.1, 0.999, 0.001, 1.0, -0.5, 1e-8))
    torch.testing.assert_close(weight, torch.full((4096,), 1 - 0.5 * 0.1 / 0.001**0.5))
