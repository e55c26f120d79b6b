"""Products with trained weights in fp8: what they are, figure by figure, and what is zero or not finite."""

import pytest
import torch
from torch import Tensor, nn

from tunesmith.models.fp8 import LARGEST, TYPES, Fp8Linear, Products8, compiled, quantized
from tunesmith.models.fp8_config import Fp8Config
from tunesmith.models.products import has_fp8

BITS = {"e4m3": (3, -6, 448.0), "e5m2": (2, -14, 57344.0)}  # of the fraction, lowest exponent, largest figure
SETTINGS = [
    {"scaling": scaling, "gradients": gradients}
    for scaling in ("rowwise", "tensorwise")
    for gradients in ("e4m3", "e5m2")
]
SHAPES = [(1, 64, 32), (33, 96, 48), (70, 32, 160)]  # rows, inputs, outputs
CLOSE = {torch.float32: 1e-6, torch.bfloat16: 2**-8}


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Figures whose rows and columns differ in size."""
    chance = torch.Generator().manual_seed(seed)
    sizes = [torch.rand(size, generator=chance) * 4 - 2 for size in shape]
    return (torch.randn(shape, generator=chance) * (sizes[0][:, None] + sizes[1]).exp()).to(dtype)


def to_format(x: Tensor, name: str) -> Tensor:
    """Rounded to the nearest figure of the format, ties to even, by arithmetic in fp64."""
    fraction, lowest, largest = BITS[name]
    exponent = torch.frexp(x)[1].clamp(min=lowest + 1) - 1
    step = torch.ldexp(torch.ones_like(x), exponent - fraction)
    return ((x / step).round() * step).clamp(-largest, largest)


def reference(x: Tensor, name: str, scaling: str) -> Tensor:
    """What an operand stands for: each figure as a multiple of the scale of its row, or of the one of all."""
    top = x.abs().amax(1, keepdim=True) if scaling == "rowwise" else x.abs().amax()
    scale = (top.float() / BITS[name][2]).clamp(min=torch.finfo(torch.float32).tiny)
    return to_format((x.float() / scale).double(), name) * scale.double()


@pytest.mark.parametrize("name", BITS)
def test_figures_are_rounded_to_the_nearest_of_the_format(name):
    exact = torch.cat([torch.linspace(-500, 500, 4001), torch.logspace(-9, 2.6, 4001), torch.tensor([BITS[name][2]])])
    values, scale = quantized(exact[None] * (BITS[name][2] / 500), TYPES[name], by_row=False)
    assert torch.finfo(TYPES[name]).max == LARGEST[TYPES[name]] == BITS[name][2]
    wanted = to_format((exact[None] * (BITS[name][2] / 500) / scale).double(), name)
    assert torch.equal(values.double(), wanted)


@pytest.mark.parametrize("emulate", [True, False], ids=["emulated", "torch's product"])
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda each: f"{each['scaling']}-{each['gradients']}")
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_all_three_products_are_those_of_rounded_operands(rows, inputs, outputs, settings, dtype, emulate):
    x, weight = draw(rows, inputs, dtype=dtype), draw(outputs, inputs, dtype=dtype, seed=1)
    grad = draw(rows, outputs, dtype=dtype, seed=2)
    products = Products8(Fp8Config(emulate=emulate, **settings))
    out, of_rows = x.new_full((rows, outputs), float("nan")), x.new_full((rows, inputs), float("nan"))
    products.product(x, weight, out)
    products.of_rows(grad, weight, of_rows)
    of_weight = products.of_weight(grad, x)
    kind, scaling = settings["gradients"], settings["scaling"]
    wanted = (
        reference(x, "e4m3", scaling) @ reference(weight, "e4m3", scaling).T,
        reference(grad, kind, scaling) @ reference(weight.T, "e4m3", scaling).T,
        reference(grad.T, kind, scaling) @ reference(x.T, "e4m3", scaling).T,
    )
    for found, exact in zip((out, of_rows, of_weight), wanted, strict=True):
        assert found.dtype == dtype
        assert (found.double() - exact).norm() <= CLOSE[dtype] * exact.norm()
        assert (found.double() - exact).abs().max() <= 2 * CLOSE[dtype] * exact.abs().max()


@pytest.mark.parametrize("name", BITS)
@pytest.mark.parametrize("by_row", [True, False])
def test_the_largest_figure_is_the_end_of_the_range_and_exact(name, by_row):
    x = draw(20, 48, seed=4)
    values, scale = quantized(x, TYPES[name], by_row)
    top = x.abs().amax(1, keepdim=True) if by_row else x.abs().amax()
    assert torch.equal(scale, top / BITS[name][2])
    whole = values.float().abs()
    assert torch.equal(whole.amax(1) if by_row else whole.amax(), torch.full_like(top.squeeze(), BITS[name][2]))
    torch.testing.assert_close((whole * scale).amax(), x.abs().amax(), rtol=1e-6, atol=0)
    assert whole.isfinite().all()


def test_a_large_row_takes_precision_from_others_only_where_one_scale_serves_all():
    x = draw(8, 64)
    x[0] *= 1e6
    errors = {}
    for scaling in ("rowwise", "tensorwise"):
        values, scale = quantized(x, TYPES["e4m3"], scaling == "rowwise")
        errors[scaling] = float((values.float() * scale - x)[1:].norm() / x[1:].norm())
    assert errors["rowwise"] < 0.04
    assert errors["tensorwise"] > 0.5


@pytest.mark.parametrize("emulate", [True, False], ids=["emulated", "torch's product"])
@pytest.mark.parametrize("scaling", ["rowwise", "tensorwise"])
def test_zeros_stay_zeros_and_the_smallest_figures_do_no_harm(scaling, emulate):
    products = Products8(Fp8Config(scaling=scaling, emulate=emulate))
    weight, out = draw(32, 64), torch.full((3, 32), float("nan"))
    for figure in (0.0, 1e-45):
        products.product(torch.full((3, 64), figure), weight, out)
        assert out.count_nonzero() == 0
        assert products.of_weight(torch.full((3, 32), figure), draw(3, 64)).count_nonzero() == 0
    products.product(draw(3, 64), torch.zeros(32, 64), out)
    assert out.count_nonzero() == 0


@pytest.mark.parametrize("emulate", [True, False], ids=["emulated", "torch's product"])
@pytest.mark.parametrize("figure", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_not_hidden(figure, emulate):
    x, weight = draw(40, 64), draw(32, 64, seed=1)
    x[3, 5] = figure
    out = torch.zeros(40, 32)
    Products8(Fp8Config(emulate=emulate)).product(x, weight, out)
    assert out[3].isnan().all()
    assert out[torch.arange(40) != 3].isfinite().all()
    Products8(Fp8Config(scaling="tensorwise", emulate=emulate)).product(x, weight, out)
    assert out.isnan().all()
    assert Products8(Fp8Config(emulate=emulate)).of_weight(draw(40, 32, seed=2), x)[:, 5].isnan().all()


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda each: f"{each['scaling']}-{each['gradients']}")
def test_a_layer_has_the_same_parameters_and_gradients_near_exact_ones(settings):
    torch.manual_seed(0)
    plain = nn.Linear(96, 64)
    layer = Fp8Linear(plain, Products8(Fp8Config(emulate=True, **settings)))
    assert layer.weight is plain.weight
    assert list(layer.state_dict()) == list(plain.state_dict()) == ["weight", "bias"]
    given, slope = torch.randn(2, 13, 96), torch.randn(2, 13, 64)
    found = []
    for each in (layer, plain, layer.exact()):
        x = given.clone().requires_grad_()
        out = each(x)
        found.append((out.detach(), *torch.autograd.grad(out, [x, each.weight, each.bias], slope)))
    assert all(torch.equal(one, other) for one, other in zip(found[1], found[2], strict=True))
    assert torch.equal(found[0][3], found[1][3])
    least, most = (0.01, 0.07) if settings["gradients"] == "e5m2" else (0.01, 0.045)
    for one, other in zip(found[0][1:3], found[1][1:3], strict=True):
        assert least < (one - other).norm() / other.norm() < most
    assert 0.01 < (found[0][0] - found[1][0]).norm() / found[1][0].norm() < 0.045


def test_only_what_wants_a_gradient_is_formed(monkeypatch):
    layer = Fp8Linear(nn.Linear(64, 64), Products8(Fp8Config(emulate=True)))
    formed: list[str] = []
    for name in ("of_rows", "of_weight"):
        own = vars(Products8)[name]
        monkeypatch.setattr(
            Products8, name, lambda self, *given, own=own, name=name: (formed.append(name), own(self, *given))[1]
        )
    layer(torch.randn(3, 64)).sum().backward()
    assert formed == ["of_weight"]
    layer.weight.requires_grad_(False)
    layer(torch.randn(3, 64, requires_grad=True)).sum().backward()
    assert formed == ["of_weight", "of_rows"]


@pytest.mark.nightly
@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("name", BITS)
def test_one_kernel_rounds_as_the_formula_does(name, by_row):
    for rows in (5, 64):
        for x in (draw(rows, 96, dtype=torch.bfloat16), draw(96, rows, dtype=torch.bfloat16).T):
            ours, theirs = (form(x, TYPES[name], by_row) for form in (compiled(), quantized))
            assert torch.equal(ours[1], theirs[1])
            assert torch.equal(ours[0].float(), theirs[0].float())


@pytest.mark.gpu
@pytest.mark.skipif(not has_fp8("cuda"), reason="no GPU with fp8 products")
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda each: f"{each['scaling']}-{each['gradients']}")
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 64, 32), (33, 96, 48), (300, 512, 1024)])
def test_a_gpu_forms_what_is_emulated(rows, inputs, outputs, settings):
    given = [draw(rows, inputs), draw(outputs, inputs, seed=1), draw(rows, outputs, seed=2)]
    found = []
    for device, emulate in (("cpu", True), ("cuda", False), ("cuda", True)):
        x, weight, grad = (each.to(device, torch.bfloat16) for each in given)
        products = Products8(Fp8Config(emulate=emulate, **settings))
        out, of_rows = x.new_empty(rows, outputs), x.new_empty(rows, inputs)
        products.product(x, weight, out)
        products.of_rows(grad, weight, of_rows)
        found.append([each.cpu().float() for each in (out, of_rows, products.of_weight(grad, x))])
    for ours, again, theirs in zip(found[1], found[2], found[0], strict=True):
        assert (ours - theirs).norm() <= 4e-3 * theirs.norm()
        assert (again - theirs).norm() <= 4e-3 * theirs.norm()
