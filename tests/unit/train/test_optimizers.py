"""Every optimiser follows its paper's formula step by step, resumes to the bit, and takes the memory planned."""

import math

import pytest
import torch
from tests.unit.train.optimizer_formulas import FORMULAS, by_schedule_free
from torch import nn

from tunesmith.distributed.mesh import Mesh
from tunesmith.models.blockwise import code_values, decode, encode, scales_of
from tunesmith.train.in_backward import BackwardOptimizer
from tunesmith.train.optimizer import Optimizer
from tunesmith.train.optimizers import (
    OPTIMIZERS,
    SGD,
    AdamMini,
    AdamW,
    AdamW8bit,
    Apollo,
    GaLore,
    Lion,
    Muon,
    ScheduleFree,
)
from tunesmith.train.optimizers.adamw8bit import in_8_bits

RATES = (0.5, 1.0, 0.8, 0.3, 1.0, 0.6)  # shares of the peak, one for each step


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.wide, self.back = nn.Linear(24, 24), nn.Linear(24, 177), nn.Linear(177, 24, bias=False)
        self.norm = nn.LayerNorm(24)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.back(torch.tanh(self.wide(self.norm(hidden + self.q_proj(hidden)))))


class Network(nn.Module):
    """An embedding, two layers with matrices of several shapes, and a head, under the names of a real model."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed_tokens = nn.Embedding(11, 24)
        self.first, self.second = Layer(), Layer()
        self.layers = nn.ModuleList([self.first, self.second])
        self.lm_head = nn.Linear(24, 5, bias=False)
        self.to(dtype)

    def named(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.named_parameters(remove_duplicate=False) if "layers" in name} | {
            name: value for name, value in self.named_parameters() if name.startswith(("embed", "lm_head"))
        }

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.second(self.first(self.embed_tokens(tokens))))


CASES = (
    *(kind(name=kind.model_fields["name"].default, weight_decay=0.1, lr=0.02) for kind in OPTIMIZERS[:8]),
    AdamMini(weight_decay=0.1, lr=0.02, head_width=6),
    SGD(weight_decay=0.1, lr=0.02, momentum=0.0),
    GaLore(weight_decay=0.1, lr=0.02, rank=4, every=3),
    GaLore(weight_decay=0.1, lr=0.02, rank=4, every=3, states="int8"),
    Apollo(weight_decay=0.1, lr=0.02, rank=4, every=3),
    Apollo(weight_decay=0.1, lr=0.02, rank=4, every=3, states="int8"),
    Apollo(weight_decay=0.1, lr=0.02, rank=4, every=3, scaling="tensor"),
)


def test_every_optimiser_is_a_case():
    assert {type(settings) for settings in CASES} == set(OPTIMIZERS)


def backward(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(11, (13,), generator=generator)
    wanted = torch.randint(5, (13,), generator=generator)
    nn.functional.cross_entropy(model(tokens).float(), wanted, reduction="sum").backward()


def train(model, optimizer, steps) -> None:
    for step in steps:
        optimizer.clear()
        optimizer.set_rate(RATES[step % len(RATES)])
        optimizer.complete(lambda: False)
        backward(model, step)
        optimizer.gradients()
        optimizer.step()


def gradient_of(step: int, name: str, shape: torch.Size) -> torch.Tensor:
    """Numbers of very different sizes."""
    generator = torch.Generator().manual_seed(step + 1000 * len(name))
    return torch.randn(shape, generator=generator) ** 3 * 10 ** torch.randn(shape[-1:], generator=generator)


def by_formula(model, settings, formula, steps, dtype=torch.float64) -> None:
    """Train with a `formula` of settings, name, weight, gradient, state, (rate, decay) and step: the new weight."""
    states = {name: {} for name, _ in model.named().items()}
    for step in steps:
        rate = settings.lr * RATES[step % len(RATES)]
        for name, parameter in model.named().items():
            decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
            gradient = gradient_of(step, name, parameter.shape)
            weight = parameter.detach().to(dtype)
            parameter.data.copy_(
                formula(settings, name, weight, gradient.to(dtype), states[name], (rate, decay), step + 1)
            )


def by_optimizer(model, optimizer, steps) -> None:
    for step in steps:
        optimizer.set_rate(RATES[step % len(RATES)])
        for name, parameter in model.named().items():
            parameter.grad = gradient_of(step, name, parameter.shape)
        optimizer.step()


every = pytest.mark.parametrize("settings", CASES, ids=lambda one: f"{one.name} {CASES.index(one)}")


@every
def test_steps_follow_the_formula(settings):
    """Under gradients that do not depend on the weights; in fp32 where a rule rounds, so that both round alike.

    Of 8-bit codes one in a thousand may still fall to the other side, which moves a row or column of a projected matrix
    by a part of its step.
    """
    ours, plain = Network(), Network()
    by_optimizer(ours, Optimizer(ours.named(), settings), range(6))
    low_in_8_bits = isinstance(settings, GaLore | Apollo) and settings.states == "int8"
    rounds = low_in_8_bits or isinstance(settings, AdamW8bit | Muon)
    formula = FORMULAS[type(settings)]
    by_formula(plain, settings, formula, range(6), torch.float32 if rounds else torch.float64)
    allowed = 0.05 if low_in_8_bits else 0.001 if isinstance(settings, AdamW8bit) else 0
    for (name, one), two in zip(ours.named().items(), plain.named().values(), strict=True):
        off = (one - two).abs()
        assert (off > 1e-6 + 1e-6 * two.abs()).sum() <= allowed * one.numel(), name
        assert off.max() < 0.1 * settings.lr, name


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_run_goes_on_from_its_state_to_the_bit(settings, dtype):
    steady, first, second = Network(dtype), Network(dtype), Network(dtype)
    train(steady, Optimizer(steady.named(), settings), range(6))
    stopped = Optimizer(first.named(), settings)
    train(first, stopped, range(3))
    with stopped.averaged():
        weights = {name: value.clone() for name, value in first.state_dict().items()}
        state = {name: tensor.clone() for name, tensor in stopped.state().items()}
    second.load_state_dict(weights)
    resumed = Optimizer(second.named(), settings)
    resumed.restore(state)
    train(first, stopped, range(3, 6))
    train(second, resumed, range(3, 6))
    for one, two, three in zip(steady.parameters(), first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


@every
def test_the_state_takes_the_bytes_that_are_planned(settings):
    model = Network(torch.bfloat16)
    optimizer = Optimizer(model.named(), settings)
    train(model, optimizer, range(1))
    kept = {name: 0 for name, _ in model.named().items()}
    for key, value in optimizer.state().items():
        name, _, what = key.rpartition(".")
        kept[name] += value.nbytes if value.ndim and what != "master" else 0
    planned = {name: settings.state_bytes(name, tuple(value.shape)) for name, value in model.named().items()}
    assert kept == planned


@every
def test_updates_in_the_backward_pass_are_the_same(settings):
    plain, model = Network(), Network()
    train(plain, Optimizer(plain.named(), settings), range(3))
    optimizer = BackwardOptimizer(model.named(), settings)
    for step in range(3):
        optimizer.clear()
        optimizer.set_rate(RATES[step])
        optimizer.complete(lambda: True)
        backward(model, step)
        optimizer.finish(Mesh())
    for one, two in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, two)


@every
def test_a_gradient_that_is_not_finite_changes_nothing_of_its_parameter(settings):
    model = Network()
    optimizer = BackwardOptimizer(model.named(), settings)
    model.first.back.weight.register_hook(lambda gradient: gradient * math.inf)
    before = model.first.back.weight.detach().clone()
    for step in range(2):
        optimizer.clear()
        optimizer.set_rate(1.0)
        optimizer.complete(lambda: True)
        backward(model, step)
        optimizer.finish(Mesh())
    assert torch.equal(before, model.first.back.weight)
    assert all(bool(value.isfinite().all()) for value in optimizer.state().values())


@every
def test_settings_are_the_same_after_a_round_trip(settings):
    assert type(settings).model_validate(settings.model_dump(mode="json")) == settings


def test_weights_to_use_are_the_average_and_come_and_go_without_a_trace():
    model, plain, settings = Network(), Network(), ScheduleFree(lr=0.02)
    optimizer = Optimizer(model.named(), settings)
    by_optimizer(model, optimizer, range(4))
    averages = {}

    def remember(settings, name, weight, gradient, state, rates, step):
        updated = by_schedule_free(settings, name, weight, gradient, state, rates, step)
        averages[name] = state["x"].float()
        return updated

    by_formula(plain, settings, remember, range(4))
    before = {name: value.clone() for name, value in model.named().items()}
    with optimizer.averaged():
        for name, value in model.named().items():
            torch.testing.assert_close(value.detach(), averages[name], atol=2e-6, rtol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in model.named().items())
    optimizer.settle()
    assert not torch.equal(before["lm_head.weight"], model.lm_head.weight)


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_those_of_the_paper(signed):
    """arXiv:2110.02861 appendix F: 0 and 1, and means between even edges from 0.1 to 1 in seven decades."""
    values = code_values(signed)
    assert len(values) == 256
    assert values[-1] == 1
    assert 0 in values
    top = values[values > 0.1][:-1]
    assert len(top) == (64 if signed else 128)
    width = 0.9 / len(top)
    torch.testing.assert_close(top, 0.1 + width * (torch.arange(len(top)) + 0.5))
    assert (values < 0).sum() == (127 if signed else 0)
    torch.testing.assert_close(values[values > 0].min(), torch.tensor(5.5e-7 if signed else 3.25e-7))


@pytest.mark.parametrize("signed", [True, False])
def test_every_code_comes_back_and_zeros_stay_zeros(signed):
    values = code_values(signed)[None].repeat(3, 1) * torch.tensor([[1e-12], [3.0], [0.0]])
    codes, scales = torch.zeros(3, 256, dtype=torch.uint8), torch.zeros(3)
    encode(values.clone(), codes, scales, signed)
    assert torch.equal(codes[1], torch.arange(256, dtype=torch.uint8))
    torch.testing.assert_close(decode(codes, scales, signed), values, atol=0, rtol=1e-6)
    assert scales.tolist()[2] == 0
    assert scales_of(257) == 2


def test_adamw_in_8_bits_stays_near_adamw():
    """On least squares with inputs that differ a thousandfold in size: the loss at every step within 6 %."""

    def losses(settings):
        torch.manual_seed(0)
        wanted, sizes = torch.randn(64, 128), torch.logspace(-1.5, 1.5, 128)
        linear = nn.Linear(128, 64, bias=False)
        linear.weight.data.zero_()
        optimizer = Optimizer({f"layers.0.{name}": value for name, value in linear.named_parameters()}, settings)
        found = []
        for step in range(300):
            inputs = torch.randn(256, 128, generator=torch.Generator().manual_seed(step)) * sizes
            optimizer.clear()
            loss = (linear(inputs) - inputs @ wanted.T).square().mean()
            loss.backward()
            optimizer.set_rate(1 - step / 300)
            optimizer.step()
            found.append(loss.item())
        return found

    exact, coarse = losses(AdamW(lr=0.02)), losses(AdamW8bit(lr=0.02))
    assert in_8_bits("layers.0.weight", (64, 128))
    assert exact[-1] < exact[0] / 100
    assert all(abs(one / two - 1) < 0.06 for one, two in zip(coarse, exact, strict=True))


def rates_of(settings, *names):
    shape = {"norm": (4,), "lora_magnitude_vector": (4,)}
    masters = {name: nn.Parameter(torch.zeros(shape.get(name.split(".")[-2], (4, 4)))) for name in names}
    groups = Optimizer(masters, settings).groups
    return {name: group["peak"] for group in groups for name in group["names"]}


def test_b_learns_faster_than_a():
    stem = "base_model.model.model.layers.3.self_attn.q_proj."
    a, b, magnitude = (f"{stem}lora_{part}.default.weight" for part in ("A", "B", "magnitude_vector"))
    head, norm = "base_model.model.lm_head.modules_to_save.default.weight", "model.layers.0.norm.weight"
    settings = AdamW(lr=1e-4, lr_ratio_b=16)
    found = rates_of(settings, a, b, magnitude.replace("magnitude_vector.default", "magnitude_vector"), head, norm)
    assert found[a] == found[head] == found[norm] == 1e-4
    assert found[b] == pytest.approx(1.6e-3)
    assert found[f"{stem}lora_magnitude_vector.weight"] == pytest.approx(1.6e-3)


def test_lower_layers_learn_slower():
    names = ["model.embed_tokens.weight", *(f"model.layers.{layer}.proj.weight" for layer in range(3))]
    found = rates_of(Lion(lr=1.0, lr_layer_decay=0.5), *names, "model.norm.weight", "lm_head.weight")
    assert [found[name] for name in names] == [0.125, 0.25, 0.5, 1.0]
    assert found["model.norm.weight"] == found["lm_head.weight"] == 1.0


def test_blocks_of_adam_mini_are_those_of_the_paper():
    """arXiv:2406.16793 algorithm 3: heads of queries and keys, output neurons, words; other tensors whole."""
    settings = AdamMini().for_heads(16)
    stem = "model.layers.1.self_attn."
    assert settings.blocks(f"{stem}q_proj.weight", (64, 48)) == 4
    assert settings.blocks(f"{stem}k_proj.weight", (32, 48)) == 2
    assert settings.blocks(f"{stem}v_proj.weight", (32, 48)) == 32
    assert settings.blocks("model.layers.1.mlp.up_proj.weight", (128, 48)) == 128
    assert settings.blocks("model.embed_tokens.weight", (400, 48)) == 400
    assert settings.blocks(f"{stem}q_proj.bias", (64,)) == settings.blocks("model.norm.weight", (48,)) == 1
    assert settings.blocks(f"{stem}q_proj.lora_A.default.weight", (16, 48)) == 16
    assert settings.blocks(f"{stem}q_proj.lora_B.default.weight", (64, 16)) == 4
    assert AdamMini(head_width=8).for_heads(16).head_width == 8
