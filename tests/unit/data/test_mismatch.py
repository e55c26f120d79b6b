"""Feedback spread evenly, and prompts with answers to other prompts."""

import json

import numpy as np
import pytest

from tunesmith.data.judgements import JudgementWriter
from tunesmith.data.loader import Builder, Microbatches, OfflineSource
from tunesmith.data.mismatch import Mismatch, mismatched, partners, spread
from tunesmith.data.prepared import Prepared
from tunesmith.types import Example, Task


@pytest.mark.parametrize(("good", "bad", "size"), [(50, 50, 4), (90, 30, 8), (10, 100, 16), (3, 300, 120)])
def test_every_step_holds_both_labels(good, bad, size):
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.ones(good), np.zeros(bad)])
    order = rng.permutation(len(labels))
    spreaded = spread(order, labels[order])
    assert sorted(spreaded) == sorted(order)
    for start in range(0, len(order) - size + 1, size):
        assert set(labels[spreaded[start : start + size]]) == {0.0, 1.0}


def test_spreading_keeps_the_order_within_a_label():
    order = np.array([5, 3, 8, 1, 9, 2])
    labels = np.array([1, 0, 1, 0, 1, 0])
    spreaded = spread(order, labels).tolist()
    assert [index for index in spreaded if index in (5, 8, 9)] == [5, 8, 9]
    assert [index for index in spreaded if index in (3, 1, 2)] == [3, 1, 2]


@pytest.mark.parametrize("seed", range(5))
def test_partners_have_other_prompts(seed):
    prompts, ones = np.random.default_rng(seed).integers(0, 4, 60), np.ones(60, dtype=int)
    chosen = partners(prompts, ones, ones, seed)
    assert (prompts[chosen] != prompts).all()
    assert (partners(prompts, ones, ones, seed) == chosen).all()


@pytest.mark.parametrize("seed", range(5))
def test_a_partner_never_makes_an_example_longer_than_the_longest(seed):
    dice = np.random.default_rng(seed)
    prompts, heads, answers = np.arange(300) % 150, dice.integers(1, 900, 300), dice.integers(1, 100, 300)
    answers[:3] = 1
    chosen = partners(prompts, heads, answers, seed)
    assert (heads + answers[chosen] <= (heads + answers).max()).all()
    assert (prompts[chosen] != prompts).all()


def test_a_prompt_that_leads_by_far_still_has_other_partners():
    prompts, ones = np.array([7] * 500 + [8, 9]), np.ones(502, dtype=int)
    chosen = partners(prompts, ones, ones, 0)
    assert (prompts[chosen] != prompts).all()
    assert len(set(chosen[:500].tolist())) == 2


def test_where_no_answer_fits_the_beginning_of_the_shortest_is_taken():
    assert partners(np.arange(3), np.array([9, 1, 1]), np.array([1, 4, 3]), 0)[0] == 2
    one = Example(np.arange(10), np.zeros(10), "a", 1, (9,), (1.0,))
    two = Example(np.arange(20, 24), np.array([0, 1, 1, 1.0]), "b", 2, (1,), (0.0,))
    assert mismatched(one, two, 10).tokens.tolist() == [*range(9), 21]


def prepared(folder, heads, answers, labels):
    """Feedback on disk with prompts and answers of these lengths; token i is example i."""
    lengths = np.array(heads) + np.array(answers)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    writer = JudgementWriter()
    examples = []
    for index, (cut, length, label) in enumerate(zip(heads, lengths, labels, strict=True)):
        tokens = np.full(length, index + 3, dtype=np.int32)
        weights = (np.arange(length) >= cut).astype(np.float32)
        examples.append(Example(tokens, weights, "f", index + 1, (cut,), (float(label),)))
        writer.append(examples[-1])
    writer.save(folder)
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "places.npy", np.array([(0, line + 1) for line in range(len(heads))]))
    np.concatenate([example.tokens for example in examples]).tofile(folder / "tokens.bin")
    np.concatenate([example.weights for example in examples]).tofile(folder / "weights.bin")
    report = {"records": len(heads), "examples": len(heads), "tokens": 0, "trained_tokens": 0, "dropped": {}}
    about = {"key": "k", "files": ["f"], "bounds": [0, len(heads)], "judged": True, "report": report}
    (folder / "about.json").write_text(json.dumps(about))
    return Prepared(folder)


def offline(store, size, *, tokens=None, microbatch=60, seed=3):
    return OfflineSource(
        Builder(store, Task("feedback"), Mismatch(store, 1)), (1.0,), sequences_per_step=None if tokens else size,
        tokens_per_step=tokens, microbatch_tokens=microbatch, seed=seed,
    )  # fmt: skip


def test_mismatched_batches_keep_every_limit(tmp_path):
    dice = np.random.default_rng(0)
    heads, answers = dice.integers(2, 40, 60).tolist(), dice.integers(1, 40, 60).tolist()
    heads[0], answers[1] = 58, 55
    source = offline(prepared(tmp_path, heads, answers, [index % 2 for index in range(60)]), 12)
    longest = int(source.lengths.max())
    batches = [batch for _ in range(source.steps_for(1)) for batch in source.next_step()]
    batches += list(Microbatches(source.build, 60))
    for batch in batches:
        for one in (batch, batch.mismatched):
            assert one.positions.max() < longest
            assert len(one.tokens) <= 60 or len(batch.examples) == 1


@pytest.mark.parametrize(
    ("labels", "size", "sizes"),
    [
        ([1, 0] * 4 + [1], 4, [4, 5]),  # a single one is left
        ([1] * 9 + [0], 4, [4, 6]),  # the bad one lies in the middle: two good ones would be left
        ([1, 0] * 5, 4, [4, 4, 2]),  # both labels are left
        ([1, 0], 4, [2]),
    ],
)
@pytest.mark.parametrize("tokens", [False, True])
def test_a_rest_of_one_label_belongs_to_the_step_before(tmp_path, labels, size, sizes, tokens):
    source = offline(
        prepared(tmp_path, [2] * len(labels), [3] * len(labels), labels), size, tokens=5 * size if tokens else None
    )
    assert source.steps_for(2) == 2 * len(sizes)
    seen, states = [], []
    for _ in range(2 * len(sizes)):
        states.append(source.state())
        seen.append([index for group in source.next_groups() for index in group])
    assert [len(step) for step in seen] == sizes * 2
    for state, step in zip(states, seen, strict=True):
        source.restore(state)
        assert [index for group in source.next_groups() for index in group] == step


def test_a_mismatched_example_is_one_prompt_and_the_other_answer():
    one = Example(np.array([1, 2, 3, 4]), np.array([0, 0, 1, 1.0]), "a", 1, (2,), (1.0,))
    two = Example(np.array([5, 6, 7, 8, 9]), np.array([0, 0, 0, 1, 0.5]), "b", 2, (3,), (0.0,))
    made = mismatched(one, two, 9)
    assert made.tokens.tolist() == [1, 2, 8, 9]
    assert made.weights.tolist() == [0, 0, 1, 0.5]
    assert made.cuts == (2,)
    assert (made.file, made.line) == ("a", 1)
