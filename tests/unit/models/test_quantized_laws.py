"""What holds for every adapter above a quantised base, on the written-out layers and on the general path."""

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.unit.models.architectures import build
from tests.unit.models.test_adapter_laws import BEGIN_AS_BASE, FOLDERS, OF_PEFT, architecture_of, logprobs
from tests.unit.models.test_fast_layer import layers_of
from tests.unit.models.test_forward import gradients

from tunesmith.errors import ModelError
from tunesmith.models.adapter_config import DoraConfig, LoraConfig
from tunesmith.models.adapters import attach, load_adapter, merge, save_adapter, trainable
from tunesmith.models.fused import fuse
from tunesmith.models.layer.module import put_fast_layers
from tunesmith.models.loftq_config import LoftqConfig
from tunesmith.models.lora import FastLoraLinear
from tunesmith.models.prompt_config import LlamaAdapterConfig
from tunesmith.models.quantization_config import Int8, Nf4
from tunesmith.models.quantized.files import SETTINGS, TAKEN, base_of_folder, quantized_layers, read_taken, start_of
from tunesmith.models.quantized.linear import QuantizedLinear, in_full
from tunesmith.models.quantized.loftq import Start, begin, less
from tunesmith.models.quantized.packed import pack, whole
from tunesmith.models.quantized.packing import Packing, quantize

FOLDERS = {name: one for name, one in FOLDERS.items() if not isinstance(one, LlamaAdapterConfig)}  # E329
LOFTQ = {"loftq": LoftqConfig(rank=4, alpha=8), "loftq in rounds": LoftqConfig(rank=4, alpha=8, rounds=3, iterations=0)}
EXAMPLES = {**FOLDERS, **LOFTQ}


def every(examples):
    return pytest.mark.parametrize("settings", examples.values(), ids=examples)


def held(settings=None, architecture=None, kind=None, taken=None):
    """The base in few bits, ready for the adapter."""
    start = start_of(settings, 3) if isinstance(settings, LoftqConfig) and taken is None else None
    packing = Packing(kind or Nf4(), start, taken or {})
    return put_fast_layers(
        fuse(quantize(build(architecture or architecture_of(settings)).requires_grad_(False), packing))
    )


def in_full_everywhere(model):
    """The same model with ordinary layers that hold the dequantised weights."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            model.set_submodule(name, in_full(module, torch.float32))
    return model


@torch.no_grad()
def disturb(model):
    chance = torch.Generator().manual_seed(1)
    for parameter in trainable(model).values():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=chance))
    return model


@every({name: one for name, one in FOLDERS.items() if name in BEGIN_AS_BASE})
def test_the_model_begins_as_the_quantised_one(settings):
    want = logprobs(held(settings))
    torch.testing.assert_close(logprobs(attach(held(settings), settings)), want, atol=1e-5, rtol=1e-5)
    assert (want - logprobs(build(architecture_of(settings)))).abs().max() > 1e-3


@every(EXAMPLES)
def test_it_learns_what_the_plain_model_with_the_dequantised_weights_learns(settings):
    model = disturb(attach(held(settings), settings))
    ours = logprobs(model.train())
    ours.square().sum().backward()
    found = gradients(model)
    plain = in_full_everywhere(model)
    for parameter in trainable(plain).values():
        parameter.grad = None
    theirs = logprobs(plain)
    theirs.square().sum().backward()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    wanted = gradients(plain)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4 * float(gradient.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("kind", [Nf4(), Int8()], ids=["nf4", "int8"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "olmo2", "gemma2", "phi3"])
def test_it_does_so_on_every_path(architecture, kind):
    settings = LoraConfig(rank=4, alpha=8)
    model = disturb(attach(held(settings, architecture, kind), settings)).train()
    assert all(layer.obstacle() is None for layer in layers_of(model))
    assert bool(layers_of(model)) == (architecture in ("llama", "qwen3", "olmo2"))
    logprobs(model).square().sum().backward()
    found = gradients(model)
    plain = in_full_everywhere(model)
    for parameter in trainable(plain).values():
        parameter.grad = None
    logprobs(plain).square().sum().backward()
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4 * float(gradient.abs().max()), rtol=1e-4)


def test_no_weight_in_full_waits_for_the_backward_pass():
    kept = []
    model = disturb(attach(held(architecture="gemma2"), LoraConfig(rank=4)))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        logprobs(model.train()).sum().backward()
    shapes = {layer.packed.shape for layer in quantized_layers(model).values()}
    assert kept
    assert not [tensor.shape for tensor in kept if tuple(tensor.shape) in shapes]


@every(EXAMPLES)
def test_folders_give_the_same_predictions_on_the_same_base(settings, tmp_path):
    model = disturb(attach(held(settings), settings))
    want = logprobs(model)
    save_adapter(model, tmp_path, "base/model")
    assert base_of_folder(tmp_path) == Nf4()
    taken = read_taken(tmp_path / TAKEN) if (tmp_path / TAKEN).exists() else {}
    assert bool(taken) == (settings is LOFTQ["loftq in rounds"])
    ours = load_adapter(held(settings, taken=taken), tmp_path, settings)
    torch.testing.assert_close(logprobs(ours), want, atol=1e-5, rtol=1e-5)
    if settings not in (*OF_PEFT.values(), *LOFTQ.values()):
        return
    theirs = peft.PeftModel.from_pretrained(held(settings, taken=taken), str(tmp_path))
    torch.testing.assert_close(logprobs(theirs), want, atol=2e-5, rtol=2e-5)


@every(EXAMPLES)
def test_merged_into_full_weights_it_predicts_the_same(settings):
    model = disturb(attach(held(settings), settings))
    want = logprobs(model)
    if not settings.merges:
        with pytest.raises(ModelError, match="E314"):
            merge(model)
        return
    merged = merge(model)
    assert not quantized_layers(merged)
    assert dict(merged.named_parameters()).keys() == dict(build(architecture_of(settings)).named_parameters()).keys()
    torch.testing.assert_close(logprobs(merged), want, atol=2e-5, rtol=2e-5)


def test_a_merge_in_bf16_is_formed_in_fp32_and_rounded_once():
    settings = LoraConfig(rank=4, targets=("q_proj", "up_proj"))
    model = disturb(attach(held(settings).bfloat16(), settings))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, FastLoraLinear)}
    wanted = {}
    for name, layer in layers.items():
        a, b = layer.factors("default")
        exact = whole(layer.get_base_layer().packed, torch.float32) + layer.scaling["default"] * b @ a
        wanted[name.removeprefix("base_model.model.")] = exact.bfloat16()
    merged = merge(model)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    for name, weight in wanted.items():
        assert torch.equal(merged.get_parameter(f"{name}.weight"), weight)


def test_nothing_is_merged_back_into_bits():
    model = attach(held(), LoraConfig(rank=4))
    with pytest.raises(ModelError, match="E323"):
        model.merge_adapter()


def test_the_lengths_of_dora_are_those_of_the_dequantised_rows():
    model = attach(held(), DoraConfig(rank=4))
    layer = next(module for module in model.modules() if isinstance(module, FastLoraLinear))
    rows = whole(layer.get_base_layer().packed, torch.float32).norm(dim=1)
    torch.testing.assert_close(layer.lora_magnitude_vector["default"].weight.detach(), rows, atol=1e-6, rtol=1e-5)


def test_folders_of_an_exact_base_say_nothing_of_one(tmp_path):
    save_adapter(attach(build("llama").requires_grad_(False), LoraConfig(rank=2)), tmp_path, "base")
    assert not (tmp_path / SETTINGS).exists()
    assert base_of_folder(tmp_path).name == "none"


@pytest.mark.parametrize("iterations", [0, 4])
@pytest.mark.parametrize("kind", [Nf4(), Int8()], ids=["nf4", "int8"])
def test_loftq_begins_nearer_to_the_exact_weight_than_quantising_alone(kind, iterations):
    weight = 0.05 * torch.randn(96, 128, generator=torch.Generator().manual_seed(3))
    alone = float((whole(pack(weight, kind), torch.float32) - weight).norm())
    errors = []
    for rounds in (1, 2, 5):
        packed, ((a, b), taken) = begin(weight, kind, Start(16, 2.0, rounds, iterations))
        errors.append(float((whole(packed, torch.float32) + 2.0 * b @ a - weight).norm()))
        again = pack(weight if taken is None else less(weight, taken), kind)
        assert torch.equal(whole(again, torch.float32), whole(packed, torch.float32))
        assert (taken is None) == (rounds == 1)
    assert errors[0] < 0.9 * alone
    assert errors[1:] < errors[:-1] or kind.name == "int8"


def test_loftq_needs_a_base_that_was_quantised_for_it():
    for base in (build("llama").requires_grad_(False), held(architecture="llama")):
        with pytest.raises(ModelError, match="E322"):
            attach(base, LoftqConfig(rank=4))


def test_loftq_reaches_the_layers_that_are_adapted():
    settings = LoftqConfig(rank=4, targets=("q_proj", "v_proj"), last=2)
    model = attach(held(settings), settings)
    adapted = {name for name, module in model.named_modules() if isinstance(module, FastLoraLinear)}
    assert len(adapted) == 4
    assert all(
        torch.count_nonzero(module.lora_B["default"].weight)
        for module in model.modules()
        if isinstance(module, FastLoraLinear)
    )


def test_what_loftq_took_away_is_saved_in_full(tmp_path):
    settings = LOFTQ["loftq in rounds"]
    save_adapter(attach(held(settings), settings), tmp_path, "base")
    taken = load_file(tmp_path / TAKEN)
    assert len(taken) == 2 * 3 * 7
    assert {tensor.dtype for tensor in taken.values()} == {torch.float32}
