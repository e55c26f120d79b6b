"""Ragged scores equal transformers' padded ones; a shared prompt equals separate forwards."""

import numpy as np
import pytest
import torch
from tests.unit.models.architectures import ARCHITECTURES, VOCABULARY, build

from tunesmith.data.packing import Node, assemble
from tunesmith.models import attention, forest
from tunesmith.models.forward import score

LENGTHS = (5, 11, 23, 1, 300 % 47)


def sequences(lengths=LENGTHS) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.integers(3, VOCABULARY, length) for length in lengths]


def all_scored(tokens: np.ndarray) -> Node:
    weights = np.ones(len(tokens), dtype=np.float32)
    weights[0] = 0
    return Node(tokens, weights)


def padded_logprobs(model, rows: list[np.ndarray]) -> torch.Tensor:
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.from_numpy(row)
        mask[index, : len(row)] = 1
    logprobs = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    parts = [
        logprobs[index, : len(row) - 1].gather(1, torch.from_numpy(row[1:])[:, None])[:, 0]
        for index, row in enumerate(rows)
    ]
    return torch.cat(parts)


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def assert_close_gradients(one: dict, two: dict, tolerance: float) -> None:
    assert one.keys() == two.keys()
    largest = max(gradient.abs().max() for gradient in two.values())
    for name in two:
        assert (one[name] - two[name]).abs().max() <= tolerance * max(largest * 1e-2, two[name].abs().max()), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ragged_logprobs_and_gradients_equal_padded_transformers(architecture):
    rows = sequences()
    model = build(architecture)
    scores = score(model, assemble([all_scored(row) for row in rows]))
    scores.logprobs.sum().backward()
    ours = gradients(model)
    model.set_attn_implementation("eager")
    theirs = padded_logprobs(model, rows)
    theirs.sum().backward()
    torch.testing.assert_close(scores.logprobs, theirs, atol=1e-5, rtol=1e-5)
    assert_close_gradients(ours, gradients(model), 1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shared_prompt_equals_separate_sequences(architecture):
    rng = np.random.default_rng(3)
    prompt, first, second, deep = (rng.integers(3, VOCABULARY, length) for length in (9, 6, 13, 4))
    silent = np.zeros(len(prompt), dtype=np.float32)
    ones = [np.ones(len(tokens), dtype=np.float32) for tokens in (first, second, deep)]
    shared = assemble([Node(prompt, silent), Node(first, ones[0], 0), Node(second, ones[1], 0), Node(deep, ones[2], 2)])
    separate = assemble(
        [
            Node(np.concatenate([prompt, first]), np.concatenate([silent, ones[0]])),
            Node(np.concatenate([prompt, second]), np.concatenate([silent, ones[1]])),
            Node(
                np.concatenate([prompt, second, deep]),
                np.concatenate([silent, np.zeros(len(second), dtype=np.float32), ones[2]]),
            ),
        ]
    )
    assert len(shared.tokens) < len(separate.tokens)
    model = build(architecture)
    scores = [score(model, batch) for batch in (shared, separate)]
    torch.testing.assert_close(scores[0].logprobs, scores[1].logprobs, atol=1e-5, rtol=1e-5)
    scores[0].logprobs.sum().backward()
    joined = gradients(model)
    scores[1].logprobs.sum().backward()
    assert_close_gradients(joined, gradients(model), 1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_dense_reference_equals_ragged(architecture):
    batch = assemble([all_scored(row) for row in sequences()])
    ragged = score(build(architecture), batch).logprobs
    dense = score(build(architecture, attention.DENSE), batch).logprobs
    torch.testing.assert_close(ragged, dense, atol=1e-5, rtol=1e-5)


def test_segments_longer_than_a_block_equal_transformers(monkeypatch):
    monkeypatch.setattr(forest, "BLOCK", 16)
    rows = sequences((50, 33))
    model = build("mistral")
    scores = score(model, assemble([all_scored(row) for row in rows]))
    scores.logprobs.sum().backward()
    ours = gradients(model)
    model.set_attn_implementation("eager")
    theirs = padded_logprobs(model, rows)
    theirs.sum().backward()
    torch.testing.assert_close(scores.logprobs, theirs, atol=1e-5, rtol=1e-5)
    assert_close_gradients(ours, gradients(model), 1e-4)


def test_unscored_tokens_get_no_gradient_from_other_sequences():
    rows = sequences((6, 8))
    model = build("llama")
    nodes = [all_scored(rows[0]), Node(rows[1], np.zeros(8, dtype=np.float32))]
    score(model, assemble(nodes)).logprobs.sum().backward()
    embedding = model.get_input_embeddings().weight.grad
    only_in_second = [token for token in rows[1] if token not in rows[0]]
    assert only_in_second
    head_tied = model.config.tie_word_embeddings
    assert not head_tied
    assert torch.all(embedding[only_in_second] == 0)
