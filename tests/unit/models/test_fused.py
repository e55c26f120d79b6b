"""Fused norms and gated layers equal transformers' own, forward and backward, on every architecture that has them."""

import pytest
import torch
from tests.unit.models.architectures import ARCHITECTURES, build
from tests.unit.models.test_forward import all_scored, assert_close_gradients, gradients, sequences

from tunesmith.data.packing import assemble
from tunesmith.models.forward import score
from tunesmith.models.fused import GatedLayer, RMSNorm, fuse


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fused_model_equals_the_plain_one(architecture):
    batch = assemble([all_scored(row) for row in sequences()])
    plain, fused = build(architecture), fuse(build(architecture))
    results = [score(model, batch) for model in (plain, fused)]
    for result in results:
        result.logprobs.sum().backward()
    torch.testing.assert_close(results[1].logprobs, results[0].logprobs, atol=1e-5, rtol=1e-5)
    assert_close_gradients(gradients(fused), gradients(plain), 1e-4)


def test_known_modules_are_replaced_and_keep_their_names():
    plain, fused = build("qwen3"), fuse(build("qwen3"))
    kinds = [type(module) for module in fused.modules()]
    assert kinds.count(GatedLayer) == 3
    assert kinds.count(RMSNorm) == 3 * 4 + 1
    assert plain.state_dict().keys() == fused.state_dict().keys()


def test_other_formulas_are_left_alone():
    assert not any(isinstance(module, RMSNorm) for module in fuse(build("gemma2")).modules())


@pytest.mark.parametrize("kind", [RMSNorm, GatedLayer])
def test_bf16_rounds_like_transformers(kind):
    """The fused module is as near to fp32 as the plain one."""
    torch.manual_seed(0)
    x = torch.randn(1, 33, 64)
    grad = torch.randn(1, 33, 64)
    name = "model.layers.0.input_layernorm" if kind is RMSNorm else "model.layers.0.mlp"

    def run(model, dtype):
        module = model.to(dtype).get_submodule(name)
        inputs = x.to(dtype, copy=True).requires_grad_()
        out = module(inputs)
        out.backward(grad.to(dtype))
        return out.float(), inputs.grad.float()

    exact = run(build("llama"), torch.float32)
    plain = run(build("llama"), torch.bfloat16)
    fused = run(fuse(build("llama")), torch.bfloat16)
    for true, theirs, ours in zip(exact, plain, fused, strict=True):
        assert (ours - true).norm() <= 1.1 * (theirs - true).norm()
