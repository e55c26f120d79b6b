"""Likelihoods of choices on shared questions, against one forward pass per choice through transformers' own layers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.unit.models.architectures import ARCHITECTURES, VOCABULARY, build

from tunesmith.errors import NumericalError
from tunesmith.evaluate.choices import best, likelihoods_of
from tunesmith.types import Example


def questions(seed: int = 0) -> list[Example]:
    """Questions that begin with the same 20 tokens, each with three to five choices of unequal length."""
    draws = np.random.default_rng(seed)
    beginning = draws.integers(3, VOCABULARY, 20)
    found = []
    for number in range(6):
        own = draws.integers(3, VOCABULARY, 4 + 3 * number)
        choices = [draws.integers(3, VOCABULARY, 1 + (number + at) % 5) for at in range(3 + number % 3)]
        tokens = np.concatenate([beginning, own, *choices]).astype(np.int32)
        weights = np.ones(len(tokens), dtype=np.float32)
        weights[: 20 + len(own)] = 0
        ends = np.cumsum([20 + len(own), *map(len, choices)])
        found.append(Example(tokens, weights, "q", number + 1, tuple(int(end) for end in ends[:-1])))
    return found


def alone(model, example: Example) -> list[tuple[float, int, bool]]:
    """Each choice behind its question in a batch of one."""
    scored = []
    for start, end in zip(example.cuts, (*example.cuts[1:], len(example)), strict=True):
        ids = np.concatenate([example.tokens[: example.cuts[0]], example.tokens[start:end]]).astype(np.int64)
        with torch.no_grad():
            logits = model(torch.tensor(ids)[None]).logits[0].double().log_softmax(-1)
        places = range(example.cuts[0], len(ids))
        total = sum(logits[place - 1, ids[place]].item() for place in places)
        scored.append((total, len(places), all(logits[place - 1].argmax() == ids[place] for place in places)))
    return scored


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shared_questions_equal_separate_scoring(architecture):
    found = likelihoods_of(build(architecture), questions())
    plain = build(architecture, "eager")
    for example, likely in zip(questions(), found, strict=True):
        wanted = alone(plain, example)
        assert [one.logprob for one in likely] == pytest.approx([total for total, _, _ in wanted], rel=1e-5, abs=1e-5)
        assert [one.tokens for one in likely] == [count for _, count, _ in wanted]
        assert [one.greedy for one in likely] == [greedy for _, _, greedy in wanted]


def test_a_choice_that_the_model_would_write_is_greedy():
    model, example = build("llama"), questions()[0]
    logits = build("llama", "eager")(torch.tensor(example.tokens[: example.cuts[0]].astype(np.int64))[None]).logits[
        0, -1
    ]
    tokens = np.append(example.tokens[: example.cuts[0]], [int(logits.argmax()), int(logits.argmin())]).astype(np.int32)
    weights = np.zeros(len(tokens), dtype=np.float32)
    weights[-2:] = 1
    cut = example.cuts[0]
    likely = likelihoods_of(model, [replace(example, tokens=tokens, weights=weights, cuts=(cut, cut + 1))])[0]
    assert [one.greedy for one in likely] == [True, False]
    assert likely[0].logprob > likely[1].logprob


def test_order_and_neighbours_change_nothing_and_progress_is_told():
    model, every = build("qwen2"), questions()
    forward = likelihoods_of(model, every)
    heard: list[tuple[int, int]] = []
    backward = likelihoods_of(model, every[::-1], lambda done, total: heard.append((done, total)))[::-1]
    for one, other in zip(forward, backward, strict=True):
        assert [each.logprob for each in one] == pytest.approx([each.logprob for each in other], abs=1e-5)
    assert heard[-1] == (6, 6)
    assert likelihoods_of(model, []) == []


def test_nan_is_refused_and_wins_nothing():
    model = build("llama")
    model.get_input_embeddings().weight.data[:] = float("nan")
    with pytest.raises(NumericalError) as caught:
        likelihoods_of(model, questions())
    assert caught.value.diagnostic.code == "E151"


def test_the_first_of_equal_figures_is_the_best():
    assert best([-2.0, -1.0, -1.0]) == 1
