"""The optimizer equals torch's AdamW on fp32, keeps fp32 masters below it, and restores to the bit."""

import torch
from torch import nn

from tunesmith.train.optimizer import Optimizer, clip, gradient_norm
from tunesmith.train.optimizers import AdamW


def network(dtype=torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 1)).to(dtype)


def backward(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 6, generator=generator).to(next(model.parameters()).dtype)
    model(x).pow(2).sum().backward()


def train(model, optimizer, seeds) -> None:
    for seed in seeds:
        optimizer.clear()
        backward(model, seed)
        optimizer.gradients()
        optimizer.set_rate(0.5)
        optimizer.step()


def test_equals_torch_adamw_with_decay_on_matrices_only():
    settings = AdamW(lr=1e-2, weight_decay=0.1)
    ours, theirs = network(), network()
    optimizer = Optimizer(dict(ours.named_parameters()), settings)
    matrices = [p for p in theirs.parameters() if p.ndim >= 2]
    vectors = [p for p in theirs.parameters() if p.ndim < 2]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=5e-3
    )
    train(ours, optimizer, range(4))
    for seed in range(4):
        reference.zero_grad()
        backward(theirs, seed)
        reference.step()
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-7, rtol=1e-6)


def test_new_layers_have_their_own_rate():
    model = network()
    optimizer = Optimizer(dict(model.named_parameters()), AdamW(lr=1e-3, lr_new_layers=1e-1), ["2."])
    assert {group["lr"] for group in optimizer.groups} == {1e-3, 1e-1}


def test_bf16_updates_too_small_for_bf16_are_not_lost():
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.constant_(model.weight, 1.0)
    optimizer = Optimizer(dict(model.named_parameters()), AdamW(lr=1e-4))
    for _ in range(100):
        optimizer.clear()
        model(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        optimizer.set_rate(1.0)
        optimizer.step()
    assert abs(model.weight.item() - 0.99) < 4e-3


def test_microbatch_gradients_add_up_in_fp32():
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    optimizer = Optimizer(dict(model.named_parameters()), AdamW())
    for value in (1.0, 2.0**-9, 2.0**-9):
        model(torch.full((1, 1), value, dtype=torch.bfloat16)).sum().backward()
    (gradient,) = optimizer.gradients()
    assert gradient.dtype == torch.float32
    assert gradient.item() == 1.0 + 2.0**-8


def test_state_restores_to_the_bit():
    for dtype in (torch.float32, torch.bfloat16):
        steady, first, second = network(dtype), network(dtype), network(dtype)
        settings = AdamW(lr=1e-2)
        optimizer = Optimizer(dict(steady.named_parameters()), settings)
        train(steady, optimizer, range(6))
        stopped = Optimizer(dict(first.named_parameters()), settings)
        train(first, stopped, range(3))
        second.load_state_dict(first.state_dict())
        resumed = Optimizer(dict(second.named_parameters()), settings)
        resumed.restore({name: tensor.clone() for name, tensor in stopped.state().items()})
        train(second, resumed, range(3, 6))
        for one, two in zip(steady.parameters(), second.parameters(), strict=True):
            assert torch.equal(one, two)


def test_clip_scales_to_the_limit_and_zero_never_clips():
    gradients = [torch.full((3,), 4.0), torch.full((4,), 3.0)]
    norm = gradient_norm(gradients)
    assert abs(norm - 84**0.5) < 1e-6
    clip(gradients, norm, 0.0)
    assert gradients[0][0] == 4.0
    clip(gradients, norm, 1.0)
    assert abs(gradient_norm(gradients) - 1) < 1e-5


def test_masters_follow_the_weights_when_a_state_has_none():
    """A state written in fp32 goes on in bf16 from its weights, not from the untrained ones."""
    model = nn.Linear(2, 1, bias=False).to(torch.bfloat16)
    nn.init.constant_(model.weight, 0.0)
    optimizer = Optimizer(dict(model.named_parameters()), AdamW())
    with torch.no_grad():
        model.weight.fill_(-0.5)
    optimizer.restore({})
    optimizer.clear()
    optimizer.gradients()
    optimizer.set_rate(0.0)
    optimizer.step()
    assert model.weight.tolist() == [[-0.5, -0.5]]
