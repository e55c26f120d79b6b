"""fp8 in whole models: which layers have it, that the written-out layer forms the same, and what stays as it is."""

import pytest
import torch
from tests.unit.models.architectures import ARCHITECTURES, build
from tests.unit.models.test_fast_layer import FAMILY, fast, layers_of
from tests.unit.models.test_forest import PAIRS, batches, loss_and_gradients
from torch import nn

from tunesmith.models.adapters import attach
from tunesmith.models.checkpointing import checkpoint_layers
from tunesmith.models.config import FreezeConfig, LoraConfig
from tunesmith.models.forward import score
from tunesmith.models.fp8 import Fp8Linear
from tunesmith.models.fp8_config import Fp8Config
from tunesmith.models.fp8_layers import exact_products, use_fp8
from tunesmith.models.policy import everywhere
from tunesmith.models.products import has_fp8

ROWS = Fp8Config(smallest=16, emulate=True)
TENSORS = Fp8Config(smallest=16, emulate=True, scaling="tensorwise")


def in_fp8(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Fp8Linear)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_trained_linear_layer_of_the_decoder_is_replaced_and_nothing_else(architecture):
    model = build(architecture).requires_grad_(True)
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    linear = [name for name, module in model.named_modules() if type(module) is nn.Linear and "layers." in name]
    assert use_fp8(model, ROWS) == len(linear) >= 12
    assert in_fp8(model) == linear
    assert type(model.lm_head) is nn.Linear
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    exact_products(model)
    assert in_fp8(model) == []
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before


def test_layers_that_read_the_same_rows_count_together():
    """64 inputs everywhere; keys and values have 32 outputs each."""
    settings = ROWS.model_copy(update={"smallest": 64})
    joined, alone = fast("llama").requires_grad_(True), build("llama").requires_grad_(True)
    assert (use_fp8(joined, settings), use_fp8(alone, settings)) == (3 * 7, 3 * 5)
    assert not any(name.endswith(("k_proj", "v_proj")) for name in in_fp8(alone))
    assert use_fp8(fast("llama").requires_grad_(True), ROWS.model_copy(update={"smallest": 65})) == 0


def test_what_is_not_a_multiple_of_16_stays_as_it_is():
    model = build("llama").requires_grad_(True)
    for layer in model.model.layers:
        layer.mlp.up_proj = nn.Linear(64, 90, bias=False)
        layer.mlp.down_proj = nn.Linear(90, 64, bias=False)
    use_fp8(model, ROWS)
    assert not any("up_proj" in name or "down_proj" in name for name in in_fp8(model))
    assert len(in_fp8(model)) == 3 * 5


def test_frozen_layers_and_adapters_stay_as_they_are():
    frozen = attach(build("llama"), FreezeConfig(last=1))
    assert use_fp8(frozen, ROWS) == 7
    assert all(".layers.2." in name for name in in_fp8(frozen))
    assert use_fp8(attach(build("llama"), LoraConfig(rank=4)), ROWS) == 0
    assert use_fp8(build("llama").requires_grad_(True), None) == 0


@pytest.mark.parametrize("architecture", FAMILY)
def test_the_written_out_layer_forms_what_single_layers_form(architecture):
    """By row the parts of a joined product have scales of their own; their gradient of the rows has one in common."""
    shared, _ = batches(PAIRS)
    ours, theirs = fast(architecture).requires_grad_(True), build(architecture).requires_grad_(True)
    assert use_fp8(ours, ROWS) == use_fp8(theirs, ROWS)
    assert all(layer.obstacle() is None for layer in layers_of(ours))
    found, wanted = loss_and_gradients(ours, shared), loss_and_gradients(theirs, shared)
    torch.testing.assert_close(found[0], wanted[0], atol=2e-2, rtol=2e-2)  # a tie may be rounded either way
    assert found[2].keys() == wanted[2].keys()
    one, other = (torch.cat([each[name].flatten() for name in wanted[2]]) for each in (found[2], wanted[2]))
    assert nn.functional.cosine_similarity(one, other, 0) > 0.995


@pytest.mark.parametrize("settings", [ROWS, TENSORS], ids=["rowwise", "tensorwise"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
def test_gradients_are_near_exact_ones_and_not_equal(architecture, settings):
    shared, _ = batches(PAIRS)
    model = (fast(architecture) if architecture != "gemma2" else build(architecture)).requires_grad_(True)
    exact = loss_and_gradients(model, shared)
    use_fp8(model, settings)
    found = loss_and_gradients(model, shared)
    assert not torch.equal(found[0], exact[0])
    torch.testing.assert_close(found[0], exact[0], atol=0.3, rtol=0.1)
    one, other = (torch.cat([each[name].flatten() for name in exact[2]]) for each in (found[2], exact[2]))
    assert 0.97 < nn.functional.cosine_similarity(one, other, 0) < 0.99999


@pytest.mark.parametrize("settings", [ROWS, TENSORS], ids=["rowwise", "tensorwise"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_layers_that_are_computed_again_give_the_same_bits(architecture, settings):
    shared, _ = batches(PAIRS)
    found = []
    for policy in ("off", "selective", "full"):
        model = (fast(architecture) if architecture == "llama" else build(architecture)).requires_grad_(True).train()
        checkpoint_layers(model, everywhere(policy))
        use_fp8(model, settings)
        found.append(loss_and_gradients(model, shared))
    for other in found[1:]:
        assert torch.equal(other[0], found[0][0])
        assert [name for name in other[2] if not torch.equal(other[2][name], found[0][2][name])] == []


def test_a_layer_that_rests_takes_no_gradient():
    model = fast("llama").requires_grad_(True)
    use_fp8(model, ROWS)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".layers.1." not in name)
    _, _, gradients = loss_and_gradients(model, batches(PAIRS)[0])
    assert gradients.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any(".layers.0." in name for name in gradients)


@pytest.mark.gpu
@pytest.mark.skipif(not has_fp8("cuda"), reason="no GPU with fp8 products")
@pytest.mark.parametrize("scaling", ["rowwise", "tensorwise"])
def test_a_model_on_a_gpu_learns_as_the_emulated_one(scaling):
    shared, _ = batches(PAIRS)
    found = []
    for emulate in (True, False):
        model = fast("llama").to("cuda", torch.bfloat16).requires_grad_(True)
        assert use_fp8(model, Fp8Config(smallest=16, scaling=scaling, emulate=emulate)) == 3 * 7
        logprobs = score(model, shared.to(torch.device("cuda"))).logprobs
        (logprobs * torch.linspace(-1, 1.5, len(logprobs), device="cuda")).mean().backward()
        slopes = [parameter.grad.float().flatten() for parameter in model.parameters() if parameter.grad is not None]
        found.append((logprobs.detach(), torch.cat(slopes)))
    torch.testing.assert_close(found[0][0], found[1][0], atol=0.1, rtol=0.05)
    assert nn.functional.cosine_similarity(found[0][1], found[1][1], 0) > 0.98
