"""The chunked head equals the full softmax, forward and backward, frozen and trained."""

import pytest
import torch
from torch import nn

from tunesmith.models import head as head_module
from tunesmith.models.head import token_logprobs, whole_logprobs


def reference(rows, head, target, softcap=None):
    logits = head(rows)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1).gather(1, target[:, None])[:, 0]


@pytest.mark.parametrize("columns", [5, 31, 40])
@pytest.mark.parametrize("kind", ["frozen", "trained", "biased", "softcapped"])
def test_chunked_head_equals_full_softmax(kind, columns, monkeypatch):
    for name, size in (("CHUNK", 7), ("ROWS", 6), ("COLUMNS", columns)):
        monkeypatch.setattr(head_module, name, size)
    torch.manual_seed(0)
    head = nn.Linear(12, 31, bias=kind == "biased").double()
    head.requires_grad_(kind != "frozen")
    softcap = 3.0 if kind == "softcapped" else None
    rows = torch.randn(20, 12, dtype=torch.float64, requires_grad=True)
    target, slope = torch.randint(0, 31, (20,)), torch.randn(20)
    want = reference(rows, head, target, softcap)
    (want * slope).sum().backward()
    expected = [rows.grad.clone(), *(p.grad.clone() for p in head.parameters() if p.requires_grad)]
    rows.grad = None
    head.zero_grad()
    got, correct, _ = token_logprobs(rows, head, target, softcap)
    (got * slope).sum().backward()
    found = [rows.grad, *(p.grad for p in head.parameters() if p.requires_grad)]
    torch.testing.assert_close(got, want.float(), atol=1e-6, rtol=1e-6)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    assert torch.equal(correct.bool(), head(rows).argmax(1) == target)
    assert not correct.requires_grad


@pytest.mark.parametrize("trained", [True, False])
def test_extreme_logits_stay_finite(trained):
    head = nn.Linear(4, 9, bias=False)
    nn.init.constant_(head.weight, 0.0)
    with torch.no_grad():
        head.weight[0] = 1e4
    head.requires_grad_(trained)
    rows = torch.ones(2, 4, requires_grad=True)
    logprobs, _, _ = token_logprobs(rows, head, torch.tensor([0, 1]))
    logprobs.sum().backward()
    assert logprobs.tolist() == [0.0, -4e4]
    assert torch.isfinite(rows.grad).all()


def test_no_scored_position_gives_an_empty_result_with_a_gradient():
    head = nn.Linear(4, 9, bias=False).requires_grad_(False)
    rows = torch.empty(0, 4, requires_grad=True)
    logprobs, _, _ = token_logprobs(rows, head, torch.empty(0, dtype=torch.long))
    logprobs.sum().backward()
    assert rows.grad.shape == (0, 4)


@pytest.mark.parametrize("columns", [5, 40])
@pytest.mark.parametrize("kind", ["frozen", "trained", "biased", "softcapped"])
@pytest.mark.parametrize("both", [True, False])
def test_log_z_and_its_gradient_equal_the_dense_formula(kind, columns, both, monkeypatch):
    for name, size in (("CHUNK", 7), ("ROWS", 6), ("COLUMNS", columns)):
        monkeypatch.setattr(head_module, name, size)
    torch.manual_seed(0)
    head = nn.Linear(12, 31, bias=kind == "biased").double()
    head.requires_grad_(kind != "frozen")
    softcap = 3.0 if kind == "softcapped" else None
    rows = torch.randn(20, 12, dtype=torch.float64, requires_grad=True)
    target, slope = torch.randint(0, 31, (20,)), torch.randn(20)
    trained = [rows, *(one for one in head.parameters() if one.requires_grad)]
    logits = head(rows) if softcap is None else softcap * torch.tanh(head(rows) / softcap)
    dense = logits.logsumexp(-1).square() + (reference(rows, head, target, softcap) * slope if both else 0)
    expected = torch.autograd.grad(dense.sum(), trained)
    logprobs, _, log_z = token_logprobs(rows, head, target, softcap)
    torch.testing.assert_close(log_z, logits.logsumexp(-1).float(), atol=1e-6, rtol=1e-6)
    found = torch.autograd.grad((log_z.square() + (logprobs * slope if both else 0)).sum(), trained)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["plain", "biased", "softcapped"])
def test_whole_rows_equal_the_full_softmax(kind, monkeypatch):
    for name, size in (("CHUNK", 7), ("WHOLE", 31 * 64), ("COLUMNS", 12)):
        monkeypatch.setattr(head_module, name, size)
    torch.manual_seed(0)
    head = nn.Linear(12, 31, bias=kind == "biased").requires_grad_(False)
    softcap = 3.0 if kind == "softcapped" else None
    rows, place, target = torch.randn(150, 12), torch.randint(0, 150, (400,)), torch.randint(0, 31, (400,))
    want = reference(rows.index_select(0, place), head, target, softcap)
    logprobs, correct = whole_logprobs(rows, head, place, target, softcap)
    torch.testing.assert_close(logprobs, want, atol=1e-6, rtol=1e-6)
    assert torch.equal(correct.bool(), head(rows).argmax(1)[place] == target)


def test_whole_rows_are_those_of_log_softmax_to_the_bit_and_ties_go_to_the_first():
    head = nn.Linear(64, 40_000, bias=False).requires_grad_(False)
    head.weight[:] = torch.randn(40_000, 64, generator=torch.Generator().manual_seed(0))
    head.weight[[7, 900]] = 5.0
    rows = torch.ones(1, 64)
    logprobs, correct = whole_logprobs(rows, head, torch.tensor([0, 0, 0]), torch.tensor([7, 900, 3]))
    logits = torch.cat([rows @ words.T for words in head.weight.split(head_module.COLUMNS)], 1)
    assert torch.equal(logprobs, logits.log_softmax(-1)[0, [7, 900, 3]])
    assert correct.tolist() == [1.0, 0.0, 0.0]
