"""KL of whole distributions in pieces equals the dense formula, value and gradient, frozen and trained."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.unit.models.architectures import VOCABULARY, build
from torch import nn

from tunesmith.data.packing import Node, assemble
from tunesmith.models import divergence as module
from tunesmith.models.divergence import divergence
from tunesmith.models.forward import score, score_only
from tunesmith.models.reference import AdapterOff, StartWeights


def dense(rows, head, other, other_head, softcap=None):
    def spread(logits):
        return (logits if softcap is None else softcap * torch.tanh(logits / softcap)).log_softmax(-1)

    own, theirs = spread(head(rows)), spread(other_head(other)).detach()
    return (own.exp() * (own - theirs)).sum(-1)


@pytest.mark.parametrize("columns", [5, 31, 40])
@pytest.mark.parametrize("kind", ["frozen", "trained", "biased", "softcapped"])
def test_pieces_equal_the_dense_formula(kind, columns, monkeypatch):
    for name, size in (("CHUNK", 7), ("ROWS", 6), ("COLUMNS", columns)):
        monkeypatch.setattr(module, name, size)
    torch.manual_seed(0)
    head, other_head = (nn.Linear(12, 31, bias=kind == "biased").double() for _ in range(2))
    head.requires_grad_(kind != "frozen")
    other_head.requires_grad_(False)
    softcap = 3.0 if kind == "softcapped" else None
    rows, other = torch.randn(20, 12, dtype=torch.float64, requires_grad=True), torch.randn(20, 12).double()
    slope, trained = torch.randn(20), [rows, *(one for one in head.parameters() if one.requires_grad)]
    want = dense(rows, head, other, other_head, softcap)
    expected = torch.autograd.grad((want * slope).sum(), trained)
    got = divergence(rows, head, other, other_head, softcap)
    torch.testing.assert_close(got, want.float(), atol=1e-6, rtol=1e-6)
    for ours, theirs in zip(torch.autograd.grad((got * slope).sum(), trained), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_equal_distributions_are_exactly_0_apart_without_a_slope():
    head = nn.Linear(12, 31, bias=False).requires_grad_(False)
    rows = torch.randn(5, 12, requires_grad=True)
    found = divergence(rows, head, rows.detach(), head)
    found.sum().backward()
    assert found.tolist() == [0.0] * 5
    assert torch.all(rows.grad == 0)


def test_extreme_logits_stay_finite():
    head = nn.Linear(4, 9, bias=False).requires_grad_(False)
    nn.init.constant_(head.weight, 0.0)
    with torch.no_grad():
        head.weight[0] = 1e4
    rows = torch.ones(2, 4, requires_grad=True)
    found = divergence(rows, head, -torch.ones(2, 4), head)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(rows.grad).all()


def batch_of_one():
    tokens = torch.randint(3, VOCABULARY, (12,), generator=torch.Generator().manual_seed(2)).numpy()
    weights = torch.tensor([0.0] * 4 + [1.0] * 8).numpy()
    return assemble([Node(tokens, weights)])


@pytest.mark.parametrize("saved", [[], ["lm_head"]])
def test_an_adapter_that_is_off_is_the_base(saved):
    base = build("llama")
    plain = score_only(base, batch_of_one()).logprobs
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], modules_to_save=saved or None))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5 * torch.sin(torch.arange(parameter.numel())).view_as(parameter))
    batch = batch_of_one()
    found = AdapterOff(model).distribution(batch)
    logprobs = found.head(found.rows).log_softmax(1).gather(1, batch.target[:, None])[:, 0]
    torch.testing.assert_close(logprobs, plain, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(score_only(model, batch).logprobs, plain, atol=1e-3)


def test_weights_at_the_start_are_held_while_the_model_moves_on():
    model = build("llama")
    reference, batch = StartWeights(model), batch_of_one()
    before = score_only(model, batch).logprobs
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.cos(torch.arange(parameter.numel())).view_as(parameter))
    found = reference.distribution(batch)
    logprobs = found.head(found.rows).log_softmax(1).gather(1, batch.target[:, None])[:, 0]
    torch.testing.assert_close(logprobs, before, atol=1e-5, rtol=1e-5)
    scores = score(model, replace(batch, reference=found))
    assert scores.divergence is not None
    assert scores.divergence.min() > 0
