"""Weights in few bits: the published table, nearest codes, bytes counted, and kernels held against torch."""

import math

import pytest
import torch
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.models.blockwise import code_values
from tunesmith.models.native import expand
from tunesmith.models.quantization_config import Fp4, Int8, Nf4, QuantizationConfig
from tunesmith.models.quantized.codes import NF4, table_of
from tunesmith.models.quantized.linear import QuantizedLinear, in_full
from tunesmith.models.quantized.packed import Packed4, pack, whole

KINDS: dict[str, QuantizationConfig] = {
    "nf4": Nf4(double_quantization=False),
    "nf4 twice": Nf4(),
    "fp4": Fp4(),
    "fp4 twice": Fp4(double_quantization=True),
    "int8": Int8(),
}
SHAPES = [(576, 192), (7, 13), (1, 1), (65, 67), (3, 64)]
PUBLISHED = (
    -1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1,
)  # fmt: skip
every = pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_table_is_the_published_one():
    assert pytest.approx(PUBLISHED, abs=6e-8) == NF4
    assert sum(value < 0 for value in NF4) == 7
    assert NF4[7] == 0
    assert sorted(set(table_of("fp4").abs().tolist())) == pytest.approx(
        [0, 1 / 192, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1]
    )


@every
@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_are_those_that_the_plan_counts(settings, shape):
    assert pack(draw(*shape), settings).nbytes == settings.stored_bytes(shape)


def test_constants_take_an_eighth_of_a_bit_instead_of_half_a_bit():
    count = 1536 * 576
    plain, twice = (pack(draw(1536, 576), KINDS[name]).nbytes - count / 2 for name in ("nf4", "nf4 twice"))
    assert 8 * plain / count == 0.5
    assert 8 * twice / count == pytest.approx(0.127, abs=5e-4)
    assert 8 * (twice - 4) / count == pytest.approx(8 / 64 + 32 / (64 * 256), abs=1e-4)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_weight_gets_the_nearest_value_of_its_block(kind, shape):
    weight = draw(*shape)
    found = whole(pack(weight, KINDS[kind]), torch.float32).flatten()
    for block, own in zip(weight.flatten().split(64), found.split(64), strict=True):
        values = table_of(kind) * block.abs().max()
        nearest = (block[:, None] - values).abs().min(1).values
        torch.testing.assert_close((block - own).abs(), nearest, atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "share"), [("nf4", 0.095), ("nf4 twice", 0.096), ("fp4", 0.125), ("fp4 twice", 0.126), ("int8", 0.009)]
)
def test_the_error_of_normal_weights_is_what_such_codes_have(name, share):
    weight = draw(576, 1536)
    error = float((whole(pack(weight, KINDS[name]), torch.float32) - weight).norm() / weight.norm())
    assert 0.9 * share < error < share


@every
def test_no_error_is_above_half_a_gap(settings):
    weight = draw(48, 640)
    packed = pack(weight, settings)
    found = whole(packed, torch.float32)
    if isinstance(packed, Packed4):
        blocks = weight.view(-1, 64)
        gap = table_of(settings.name).sort().values.diff().max()
        limit = (gap / 2 * blocks.abs().amax(1, keepdim=True)).expand_as(blocks).reshape(weight.shape)
    else:
        limit = weight.abs().amax(1, keepdim=True) / 127 / 2
    slack = 0.01 * weight.abs().max() if "twice" in settings.told() or settings.name != "int8" else 1e-7
    assert ((found - weight).abs() <= limit + slack).all()


@every
def test_zeros_stay_zeros(settings):
    weight = draw(4, 128)
    weight[1] = 0
    weight[2, :64] = 0
    found = whole(pack(weight, settings), torch.float32)
    assert not found[1].any()
    assert not found[2, :64].any()
    assert not whole(pack(torch.zeros(3, 65), settings), torch.float32).any()


@every
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_and_torch_agree_to_the_bit(settings, shape, dtype, monkeypatch):
    packed = pack(draw(*shape), settings)
    if not expand.serves(torch.empty(1)):
        pytest.skip("there is no compiler")
    ours = whole(packed, dtype)
    monkeypatch.setattr(expand, "serves", lambda out: False)
    assert torch.equal(ours, whole(packed, dtype))


@every
def test_what_is_formed_in_fp32_is_rounded_once_and_the_stored_type_does_not_matter(settings):
    weight = draw(40, 96).bfloat16()
    packed = pack(weight, settings)
    assert torch.equal(whole(packed, torch.bfloat16), whole(packed, torch.float32).bfloat16())
    assert torch.equal(whole(packed, torch.float32), whole(pack(weight.float(), settings), torch.float32))


def test_codes_keep_their_types_when_the_model_changes_its_own():
    layer = QuantizedLinear(pack(draw(24, 64), Nf4()), torch.nn.Parameter(draw(24)), torch.float32)
    exact = layer.weight
    layer.to(torch.bfloat16)
    assert (layer.weight.dtype, layer.bias.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(in_full(layer, torch.float32).weight, exact)
    assert list(layer.state_dict()) == ["bias"]


def test_a_layer_without_an_adapter_has_the_gradient_of_its_weight():
    layer = QuantizedLinear(pack(draw(24, 64), Int8()), torch.nn.Parameter(draw(24)), torch.float32)
    plain = in_full(layer, torch.float32)
    for one in (x := draw(2, 5, 64).requires_grad_(),):
        (ours,) = torch.autograd.grad(layer(one).square().sum(), one)
        (theirs,) = torch.autograd.grad(plain(one).square().sum(), one)
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(layer(x), plain(x))


@pytest.mark.parametrize("name", ["nf4", "nf4 twice", "int8"])
def test_weights_that_are_not_finite_are_found(name):
    weight = draw(8, 64)
    assert pack(weight, KINDS[name]).is_finite()
    weight[3, 5] = math.nan
    assert not pack(weight, KINDS[name]).is_finite()


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_codes_are_those_of_bitsandbytes(kind, twice):
    theirs = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    weight = draw(576, 1536)
    settings = (Nf4 if kind == "nf4" else Fp4)(double_quantization=twice)
    packed = pack(weight, settings)
    assert isinstance(packed, Packed4)
    codes, state = theirs.quantize_4bit(weight, quant_type=kind, blocksize=64, compress_statistics=twice)
    if kind == "nf4":  # of fp4 they write a code for -0 as well
        assert torch.equal(codes.view(-1), packed.codes)
    wanted, found = theirs.dequantize_4bit(codes, state), whole(packed, torch.float32)
    if not twice:
        torch.testing.assert_close(found, wanted, atol=0, rtol=0)
        return
    torch.testing.assert_close(packed.constants.mean[0], state.offset)
    torch.testing.assert_close(packed.constants.scales, state.state2.absmax)
    torch.testing.assert_close(code_values(True), state.state2.code, atol=1e-7, rtol=0)
    odd = packed.constants.values != state.absmax  # halfway between two codes, within rounding
    assert odd.float().mean() < 0.005
    exact = weight.view(-1, 64).abs().amax(1)
    ours = (packed.constants.expanded() - exact).abs()
    other = (theirs.dequantize_blockwise(state.absmax, state.state2) + state.offset - exact).abs()
    assert (ours <= other + 1e-7).all()


def test_the_error_names_the_layer(tmp_path):
    from tests.unit.models.architectures import build

    from tunesmith.models.quantized.packing import Packing, quantize

    model = build("llama")
    model.get_parameter("model.layers.1.mlp.up_proj.weight").data[0, 0] = math.inf
    with pytest.raises(ModelError, match="E327") as caught:
        quantize(model, Packing(Nf4()))
    assert caught.value.diagnostic.evidence == ("model.layers.1.mlp.up_proj",)
