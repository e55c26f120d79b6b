"""Products of frozen weights in 8 bits: what they are, how far from exact ones, and where they stand."""

import copy

import pytest
import torch
from tests.unit.models.architectures import build
from tests.unit.models.test_fast_layer import adapted, fast, layers_of
from tests.unit.models.test_forest import PAIRS, batches, loss_and_gradients
from torch import Tensor, nn

from tunesmith.errors import MachineError, UsageError
from tunesmith.models import eight_bit
from tunesmith.models import products as machines
from tunesmith.models.adapters import attach
from tunesmith.models.base_products import use_products
from tunesmith.models.config import FreezeConfig
from tunesmith.models.eight_bit import Linear8, Weights8, join, quantized

SHAPES = [(1, 64, 32), (33, 100, 70), (257, 192, 96), (64, 2048, 640)]
CLOSE = {torch.float32: 1e-6, torch.bfloat16: 2**-8}
multiplies_blocks = eight_bit.multiplies_blocks


@pytest.fixture(params=["kernels", "torch"])
def means(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(eight_bit, "kernels_for", lambda states: None)
        monkeypatch.setattr(eight_bit, "multiplies_blocks", lambda: False)
    elif not multiplies_blocks():
        pytest.skip("the kernels multiply no blocks here: see tunesmith doctor")


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def in_steps(x: Tensor) -> Tensor:
    """Rows rounded to 255 steps, in fp64."""
    x = x.double()
    step = x.abs().amax(1, keepdim=True) / 127
    return torch.where(step > 0, (x / step).round() * step, 0.0)


@pytest.mark.usefixtures("means")
@pytest.mark.parametrize("count", [1, 2])
def test_what_a_layer_gives_may_be_added_to_in_place(count):
    layers = [nn.Linear(32, 32, bias=False).requires_grad_(False) for _ in range(count)]
    x = draw(5, 32).requires_grad_()
    for layer in join(layers, "int8"):
        out = layer(x)
        out += x
        found = torch.autograd.grad(out.sum(), x)[0]
        torch.testing.assert_close(found, 1 + torch.autograd.grad(layer(x).sum(), x)[0])


@pytest.mark.usefixtures("means")
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_both_products_are_those_of_rounded_rows_and_rounded_weights(rows, inputs, outputs, dtype):
    x, grad = draw(rows, inputs, dtype=dtype), draw(rows, outputs, dtype=dtype, seed=1)
    weight = draw(outputs, inputs, dtype=dtype, seed=2)
    weights = Weights8(weight, "int8")
    out, back = x.new_full((rows, outputs), float("nan")), x.new_full((rows, inputs), float("nan"))
    weights.product(x, out)
    weights.product_backward(grad, back)
    for found, one, other in ((out, x, weight), (back, grad, weight.T)):
        wanted = in_steps(one) @ in_steps(other).T
        # a figure halfway between two steps may fall on either side
        assert (found.double() - wanted).norm() <= (CLOSE[dtype] + 5e-4) * wanted.norm()


@pytest.mark.usefixtures("means")
def test_a_row_of_zeros_stays_zero_and_the_largest_figure_is_exact():
    x = torch.zeros(3, 64)
    x[1, 5] = -3.0
    whole, scale = quantized(x)
    assert whole[0, :64].count_nonzero() == 0
    assert (whole[1, 5] * scale[1]).item() == pytest.approx(-3.0, rel=1e-6)
    out = torch.full((3, 32), float("nan"))
    Weights8(draw(32, 64), "int8").product(x, out)
    assert not out[0].any()
    assert out.isfinite().all()


@pytest.mark.usefixtures("means")
@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_stays_so_and_is_the_only_one(figure):
    x = draw(40, 100)
    x[3, 5] = figure
    out = torch.zeros(40, 70)
    Weights8(draw(70, 100, seed=1), "int8").product(x, out)
    assert out[3].isnan().all()
    assert out[:3].isfinite().all()
    assert out[4:].isfinite().all()


@pytest.mark.skipif(not multiplies_blocks(), reason="the kernels multiply no blocks here: see tunesmith doctor")
def test_kernel_and_torch_round_alike(monkeypatch):
    x = draw(65, 200, dtype=torch.bfloat16)
    ours, scale = (each.clone() for each in quantized(x))
    monkeypatch.setattr(eight_bit, "kernels_for", lambda states: None)
    theirs, other = quantized(x)
    assert torch.equal(scale, other)
    assert (ours[:65, :200].int() - theirs[:65, :200].int()).abs().max() <= 1


@pytest.mark.skipif(not multiplies_blocks(), reason="the kernels multiply no blocks here: see tunesmith doctor")
def test_exact_products_are_the_same_before_and_after_and_threads_do_not_matter():
    x, weight = draw(300, 192, dtype=torch.bfloat16), draw(640, 192, dtype=torch.bfloat16, seed=1)
    before, weights, found = x @ weight.T, Weights8(weight, "int8"), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            out = torch.empty(300, 640, dtype=torch.bfloat16)
            weights.product(x, out)
            found.append(out)
            assert torch.equal(x @ weight.T, before)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_the_error_of_a_product_is_about_a_hundredth():
    x, weight = draw(512, 576), draw(960, 576, seed=1)
    out = torch.empty(512, 960)
    Weights8(weight, "int8").product(x, out)
    wanted = x @ weight.T
    assert 2e-3 < float((out - wanted).norm() / wanted.norm()) < 2e-2


def test_layers_joined_give_what_each_gives_alone():
    layers = [nn.Linear(96, outputs, bias=outputs == 40) for outputs in (64, 40)]
    x = draw(2, 7, 96).requires_grad_()
    for layer, joined in zip(layers, join(layers, "int8"), strict=True):
        (alone,) = join([layer], "int8")
        ours, theirs = joined(x), alone(x)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        assert (ours - layer(x)).norm() < 0.02 * layer(x).norm()
        (slope,) = torch.autograd.grad(ours.square().sum(), x)
        (wanted,) = torch.autograd.grad(layer(x).square().sum(), x)
        assert (slope - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "olmo2"])
def test_the_written_out_layer_uses_them_and_learns_nearly_the_same(architecture):
    shared, _ = batches(PAIRS)
    model, exact = fast(architecture, ("all",)), fast(architecture, ("all",))
    assert use_products(model, "int8") == 4 * len(layers_of(model))
    assert all(layer.obstacle() is None for layer in layers_of(model))
    ours, theirs = loss_and_gradients(model, shared), loss_and_gradients(exact, shared)
    assert not torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[0], theirs[0], atol=0.2, rtol=0.05)
    one, other = (torch.cat([each[name].flatten() for name in theirs[2]]) for each in (ours[2], theirs[2]))
    assert nn.functional.cosine_similarity(one, other, 0) > 0.97


@pytest.mark.parametrize("architecture", ["gemma2", "llama"])
def test_the_general_path_has_them_too(architecture):
    shared, _ = batches(PAIRS)
    model, exact = (adapted(build(architecture), ("all",)) for _ in range(2))
    assert use_products(model, "int8") == 3 * 7
    assert sum(isinstance(module, Linear8) for module in model.modules()) == 3 * 7
    ours, theirs = loss_and_gradients(model, shared), loss_and_gradients(exact, shared)
    torch.testing.assert_close(ours[0], theirs[0], atol=0.2, rtol=0.05)


def test_only_frozen_layers_are_replaced():
    model = attach(build("llama"), FreezeConfig(last=1))
    assert use_products(model, "int8") == 2 * 7
    with pytest.raises(UsageError) as caught:
        use_products(copy.deepcopy(build("llama")).requires_grad_(True), "int8")
    assert caught.value.diagnostic.code == "E097"


@pytest.mark.parametrize(("products", "device"), [("int8", "cuda"), ("fp8", "cpu"), ("int8", "cpu")])
def test_a_machine_without_them_is_refused_with_the_reason(products, device, monkeypatch):
    monkeypatch.setattr(machines, "multiplies_blocks", lambda: False)
    monkeypatch.setattr(machines.torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(MachineError) as caught:
        machines.check_machine(products, device)
    assert caught.value.diagnostic.code == "E098"
    assert "needs" in str(caught.value)
    machines.check_machine("exact", device)


@pytest.mark.parametrize(("tiles", "vnni", "amx", "able"), [(1, 1, 1, 1), (0, 1, 1, 0), (0, 1, 0, 1), (0, 0, 0, 0)])
def test_with_amx_only_the_kernels_are_faster_than_exact_products(tiles, vnni, amx, able, monkeypatch):
    monkeypatch.setattr(machines, "multiplies_blocks", lambda: bool(tiles))
    monkeypatch.setattr(machines.torch.cpu, "_is_vnni_supported", lambda: bool(vnni))
    monkeypatch.setattr(machines.torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    assert machines.has_int8("cpu") is bool(able)


@pytest.mark.gpu
@pytest.mark.skipif(not machines.has_fp8("cuda"), reason="no GPU with fp8 products")
def test_fp8_products_on_a_gpu_are_near_exact_ones():
    x, weight = draw(100, 256, dtype=torch.bfloat16).cuda(), draw(512, 256, dtype=torch.bfloat16, seed=1).cuda()
    weights = Weights8(weight, "fp8")
    out, back = x.new_empty(100, 512), x.new_empty(100, 256)
    weights.product(x, out)
    weights.product_backward(out, back)
    assert (out - x @ weight.T).norm() < 0.06 * (x @ weight.T).norm()
    assert (back - out @ weight).norm() < 0.06 * (out @ weight).norm()
