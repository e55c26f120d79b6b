"""Feedback spread evenly, and prompts with answers to other prompts."""

import numpy as np
import pytest

from tunesmith.data.mismatch import mismatched, partners, spread
from tunesmith.errors import DataError
from tunesmith.types import Example


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
    prompts = np.random.default_rng(seed).integers(0, 4, 60)
    chosen = partners(prompts, seed)
    assert (prompts[chosen] != prompts).all()
    assert (partners(prompts, seed) == chosen).all()


def test_one_prompt_alone_cannot_be_mismatched():
    with pytest.raises(DataError) as caught:
        partners(np.zeros(5), 0)
    assert caught.value.diagnostic.code == "E280"


def test_a_mismatched_example_is_one_prompt_and_the_other_answer():
    one = Example(np.array([1, 2, 3, 4]), np.array([0, 0, 1, 1.0]), "a", 1, (2,), (1.0,))
    two = Example(np.array([5, 6, 7, 8, 9]), np.array([0, 0, 0, 1, 0.5]), "b", 2, (3,), (0.0,))
    made = mismatched(one, two)
    assert made.tokens.tolist() == [1, 2, 8, 9]
    assert made.weights.tolist() == [0, 0, 1, 0.5]
    assert made.cuts == (2,)
    assert (made.file, made.line) == ("a", 1)
