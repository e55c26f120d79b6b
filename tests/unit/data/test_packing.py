"""Bins conserve every example; batches hold no padding and score the right tokens."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.packing import Node, assemble, batch_of, pack, without_unread
from tunesmith.types import Example


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 50))
def test_bins_hold_every_index_once_and_keep_the_capacity(lengths, capacity):
    bins = pack(lengths, capacity)
    assert sorted(index for contents in bins for index in contents) == list(range(len(lengths)))
    for contents in bins:
        assert len(contents) == 1 or sum(lengths[index] for index in contents) <= capacity


def test_best_fit_fills_the_tightest_bin():
    assert pack([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]


def test_batch_scores_trained_tokens_only_and_leaves_out_the_unread_tail():
    one = Example(np.array([5, 6, 7, 8, 9]), np.array([0, 0, 1, 2, 0], dtype=np.float32), "a", 1)
    two = Example(np.array([3, 4]), np.array([0, 1], dtype=np.float32), "a", 2)
    batch = batch_of([one, two])
    assert batch.tokens.tolist() == [5, 6, 7, 3]
    assert batch.positions.tolist() == [0, 1, 2, 0]
    assert batch.segments.tolist() == [[0, 3, -1], [3, 4, -1]]
    assert batch.query.tolist() == [1, 2, 3]
    assert batch.target.tolist() == [7, 8, 4]
    assert batch.weight.tolist() == [1, 2, 1]
    assert batch.sequence.tolist() == [0, 0, 1]
    assert batch.records == ("a:1", "a:2")


def test_a_childs_first_token_is_predicted_by_its_parents_last():
    silent, loud = np.zeros(3, dtype=np.float32), np.ones(2, dtype=np.float32)
    batch = assemble(
        [Node(np.array([1, 2, 3]), silent), Node(np.array([4, 5]), loud, 0), Node(np.array([6, 7]), loud, 0)]
    )
    assert batch.tokens.tolist() == [1, 2, 3, 4, 6]
    assert batch.positions.tolist() == [0, 1, 2, 3, 3]
    assert batch.query.tolist() == [2, 3, 2, 4]
    assert batch.target.tolist() == [4, 5, 6, 7]


def test_an_example_without_trained_tokens_still_makes_a_batch():
    batch = batch_of([Example(np.array([5, 6]), np.zeros(2, dtype=np.float32), "a", 1)])
    assert batch.tokens.tolist() == [5]
    assert len(batch.target) == 0


def test_an_answer_may_continue_an_earlier_one():
    weights = np.array([0, 0, 1, 1, 1, 1, 1], dtype=np.float32)
    batch = batch_of([Example(np.arange(10, 17), weights, "a", 1, (2, 4, 6), stems=(-1, 0, 0))])
    assert batch.segments.tolist() == [[0, 2, -1], [2, 4, 0], [4, 5, 1], [5, 6, 1]]
    assert batch.target.tolist() == [12, 13, 14, 15, 16]
    assert batch.query.tolist() == [1, 2, 3, 4, 3]
    assert batch.sequence.tolist() == [0, 0, 1, 1, 2]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 4]


def test_answers_of_one_token_are_read_at_their_prompt_and_leave_the_batch():
    tokens = np.array([5, 6, 7, 10, 11, 12, 13, 14], dtype=np.int32)
    weights = np.array([0, 0, 0, 1, 1, 1, 1, 1], dtype=np.float32)
    example = Example(tokens, weights, "q", 1, (3, 4, 5, 7))  # of 1, 1, 2 and 1 tokens
    whole = batch_of([example, example])
    batch = without_unread(whole)
    assert batch.tokens.tolist() == [5, 6, 7, 12] * 2
    assert batch.positions.tolist() == [0, 1, 2, 3] * 2
    assert batch.segments.tolist() == [[0, 3, -1], [3, 4, 0], [4, 7, -1], [7, 8, 2]]
    assert batch.query.tolist() == [2, 2, 2, 3, 2, 6, 6, 6, 7, 6]
    assert batch.target.tolist() == whole.target.tolist()
    assert batch.sequence.tolist() == whole.sequence.tolist()
    assert batch.group.tolist() == whole.group.tolist()
    assert batch.origins is not None
    assert batch.origins.tolist() == [[0, 0], [0, 5], [1, 0], [1, 5]]
    assert without_unread(batch) is batch
