"""Microbatches hold every example once, keep the budget, keep together what shares, and cost about the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.beginnings import alike
from tests.unit.data.test_branches import overlapping

from tunesmith.data.balance import EVEN, Sizes, deal, share_out, sizes_of, squares_of
from tunesmith.data.branches import apart, forest_of
from tunesmith.data.packing import pack
from tunesmith.types import Example

lengths_of_a_step = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def plain(lengths, capacity, ranks=1):
    return share_out(apart(len(lengths)), Sizes(lengths, [length**2 for length in lengths]), capacity, ranks)


@given(lengths_of_a_step, st.integers(1, 90), st.integers(1, 4))
def test_every_example_is_in_one_microbatch_of_one_rank_and_the_budget_is_kept(lengths, capacity, ranks):
    hands = plain(lengths, capacity, ranks)
    assert len(hands) == ranks
    assert sorted(place for hand in hands for group in hand for place in group) == list(range(len(lengths)))
    groups = [group for hand in hands for group in hand]
    assert all(group == sorted(group) and group for group in groups)
    assert all(len(group) == 1 or sum(lengths[place] for place in group) <= capacity for group in groups)
    assert hands == plain(lengths, capacity, ranks)


@given(lengths_of_a_step, st.integers(1, 90))
def test_there_are_no_more_microbatches_than_best_fit_needs(lengths, capacity):
    assert len(plain(lengths, capacity)[0]) <= len(pack(lengths, capacity)) + 1


@given(overlapping(), st.integers(20, 200), st.integers(1, 3))
def test_what_a_microbatch_computes_keeps_the_budget(examples, capacity, ranks):
    sizes = sizes_of(examples)
    hands = share_out(forest_of(examples), sizes, capacity, ranks)
    groups = [group for hand in hands for group in hand]
    assert sorted(place for group in groups for place in group) == list(range(len(examples)))
    for group in groups:
        chosen = [examples[place] for place in group]
        tokens = sum(map(len, chosen)) - sum(branch.saved for branch in forest_of(chosen))
        assert len(group) == 1 or tokens <= capacity


def test_attention_counts_as_well_as_length():
    lengths = [4096, *[256] * 32]
    (one,), (other,) = plain(lengths, 8192, 2)
    costs = [sum(lengths[place] + lengths[place] ** 2 / EVEN for place in group) for group in (one, other)]
    assert max(costs) / min(costs) < 1.05
    assert sorted((len(one), len(other))) == [5, 28]  # of even length they would hold 9 and 24


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_and_microbatches_have_even_work(ranks):
    dice = np.random.default_rng(0)
    lengths = np.minimum(dice.lognormal(5.3, 0.7, 128).astype(int) + 8, 1024).tolist()
    hands = plain(lengths, 2048, ranks)
    work = [sum(lengths[place] for group in hand for place in group) for hand in hands]
    assert max(work) / min(work) < 1.05
    groups = [sum(lengths[place] for place in group) for hand in hands for group in hand]
    assert max(groups) / min(groups) < 1.1


def test_records_that_share_stand_together_where_they_fit():
    examples = alike("pair", count=9)
    forest = forest_of(examples)
    (root,) = [branch for branch in forest if branch.children]
    total = sum(map(len, examples)) - sum(branch.saved for branch in forest)
    (hand,) = share_out(forest, sizes_of(examples), total - 1, 1)
    assert any(set(root.members) <= set(group) for group in hand)


def test_a_tree_too_large_is_cut_between_its_questions():
    dice = np.random.default_rng(1)
    system = np.arange(3, 43)
    examples = []
    for question in range(6):
        asked = np.concatenate([system, np.full(20, 50 + question)])
        for answer in range(3):
            tokens = np.concatenate([asked, dice.integers(60, 90, 10)]).astype(np.int32)
            weights = (np.arange(70) >= 60).astype(np.float32)
            examples.append(Example(tokens, weights, "f", 3 * question + answer))
    order = dice.permutation(18)
    mixed = [examples[place] for place in order]
    (hand,) = share_out(forest_of(mixed), sizes_of(mixed), 40 + 2 * 50, 1)
    assert [len(group) for group in hand] == [6, 6, 6]
    for group in hand:
        assert len({mixed[place].line // 3 for place in group}) == 2  # two whole questions


def test_several_ranks_split_what_one_would_keep_together():
    system = np.arange(3, 43)
    examples = [
        Example(np.append(system, np.full(30, 50 + one)).astype(np.int32), np.eye(70, dtype=np.float32)[60], "f", one)
        for one in range(8)
    ]
    hands = share_out(forest_of(examples), sizes_of(examples), 4096, 4)
    assert [sum(len(group) for group in hand) for hand in hands] == [2, 2, 2, 2]
    assert [len(hand) for hand in share_out(forest_of(examples), sizes_of(examples), 4096, 1)] == [1]


def test_squares_follow_the_paths_of_answers():
    none = np.zeros(10, dtype=np.float32)
    tokens = np.arange(10)
    assert squares_of(10, Example(tokens, none, "f", 1)) == 100
    assert squares_of(10, Example(tokens, none, "f", 1, (4, 8))) == 16 + (8**2 - 4**2) + (6**2 - 4**2)
    assert squares_of(10, Example(tokens, none, "f", 1, (4, 8), chained=True)) == 100


@given(st.lists(st.integers(1, 100), max_size=30), st.integers(1, 5))
def test_dealing_gives_every_index_to_one_rank(lengths, ranks):
    hands = deal(lengths, ranks)
    assert sorted(index for hand in hands for index in hand) == list(range(len(lengths)))
