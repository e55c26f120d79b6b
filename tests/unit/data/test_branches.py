"""What examples begin with is found at every level, and a batch that shares it holds each of them whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.beginnings import QUESTION, SYSTEM, alike

from tunesmith.data.branches import LEVELS, SHORTEST, forest_of, grow, opening
from tunesmith.data.packing import batch_of
from tunesmith.types import Batch, Example

KINDS = ("sequence", "pair", "feedback", "ranking", "label", "process")
TRUNK = np.arange(5, 205)


@st.composite
def overlapping(draw) -> list[Example]:
    """Sequences that follow one trunk for a while, with untrained and trained tokens after it."""
    made = []
    for line in range(draw(st.integers(1, 8))):
        follows = draw(st.integers(0, 60))
        tail = draw(st.lists(st.integers(3, 6), min_size=2, max_size=30))
        tokens = np.concatenate([TRUNK[:follows], tail]).astype(np.int32)
        trained = draw(st.integers(1, len(tokens) - 1))
        weights = np.where(np.arange(len(tokens)) >= trained, 1.0, 0.0).astype(np.float32)
        answered = follows > 0 and trained >= follows and draw(st.booleans())
        made.append(Example(tokens, weights, "f", line, (follows,) if answered else ()))
    return made


def paths(batch: Batch) -> list[list[tuple[int, int]]]:
    """(token, position) along the path of every segment."""
    found: list[list[tuple[int, int]]] = []
    for start, end, parent in batch.segments.tolist():
        own = list(zip(batch.tokens[start:end].tolist(), batch.positions[start:end].tolist(), strict=True))
        found.append(([] if parent < 0 else found[parent]) + own)
    return found


def seen_at(batch: Batch) -> list[tuple[int, list[int], int, float]]:
    """For every scored token: its example, all tokens before it, itself and its weight."""
    owner = np.searchsorted(batch.segments[:, 0].contiguous().numpy(), batch.query.numpy(), side="right") - 1
    along = paths(batch)
    rows = []
    for k, query in enumerate(batch.query.tolist()):
        position = int(batch.positions[query])
        before = [token for token, _ in along[owner[k]][: position + 1]]
        assert [place for _, place in along[owner[k]]] == list(range(len(along[owner[k]])))
        example = batch.examples[int(batch.group[batch.sequence[k]])]
        rows.append((example, before, int(batch.target[k]), float(batch.weight[k])))
    return rows


def by_example(batch: Batch) -> list[list[tuple[int, list[int], int, float]]]:
    rows = seen_at(batch)
    return [[row for row in rows if row[0] == example] for example in sorted(batch.examples)]


def same_examples(examples: list[Example], reads="logprobs") -> Batch:
    """Sharing changes no scored token, nor what stands before it; the examples' tokens stand end to end, in order."""
    indices = range(100, 100 + len(examples))
    shared, apart = (batch_of(examples, reads, indices, share=share) for share in (True, False))
    assert by_example(shared) == by_example(apart)
    owners = [row[0] for row in seen_at(shared)]
    assert owners == sorted(owners, key=shared.examples.index)
    assert sorted(shared.records) == sorted(apart.records)
    order = [apart.examples.index(example) for example in shared.examples]
    counts = np.bincount(apart.group.numpy(), minlength=len(examples))
    starts = np.cumsum(counts) - counts
    rows = np.concatenate([np.arange(starts[place], starts[place] + counts[place]) for place in order])
    assert shared.labels.tolist() == apart.labels[rows].tolist()
    assert shared.imitated.tolist() == apart.imitated[rows].tolist()
    again = batch_of([examples[index - 100] for index in shared.examples], reads, shared.examples, share=True)
    assert (again.examples, again.tokens.tolist()) == (shared.examples, shared.tokens.tolist())
    return shared


@given(overlapping())
def test_sharing_changes_the_tokens_of_no_example(examples):
    shared = same_examples(examples)
    saved = sum(branch.saved for branch in forest_of(examples))
    whole = batch_of(examples)
    assert len(shared.tokens) >= len(whole.tokens) - saved
    assert saved == 0 or len(shared.tokens) < len(whole.tokens)


@given(overlapping())
def test_every_example_is_one_leaf_and_every_shared_segment_is_long_enough(examples):
    openings = [opening(one) for one in examples]
    forest = grow(openings)
    found = [branch for root in forest for branch in root.walk()]
    assert sorted(branch.members[0] for branch in found if not branch.children) == list(range(len(examples)))
    for branch in found:
        if branch.children:
            assert branch.own >= SHORTEST
            assert len(branch.members) > 1
            parts = [openings[place][: branch.end].tolist() for place in branch.members]
            assert all(len(part) == branch.end and part == parts[0] for part in parts)
            assert {child.above for child in branch.children} == {branch.end}
    assert [root.members[0] for root in forest] == sorted(root.members[0] for root in forest)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reads", ["logprobs", "values"])
def test_records_of_every_kind_share_at_two_levels(kind, reads):
    examples = alike(kind, reads)
    shared = same_examples(examples, reads)
    (root,) = [branch for branch in forest_of(examples) if branch.children]
    assert (root.own, len(root.members)) == (SYSTEM, 5)
    assert {branch.own for branch in root.children if branch.children} >= {QUESTION}
    saved = sum(branch.saved for branch in forest_of(examples))
    assert len(batch_of(examples, reads).tokens) - len(shared.tokens) == saved


def test_what_nobody_shares_is_laid_out_as_ever():
    examples = alike("pair")[:1] + alike("pair")[2:3]
    for share in (True, False):
        batch = batch_of(examples, share=share)
        assert batch.records == ("given:1", "given:3")
        assert batch.segments[:, 2].tolist() == [-1, 0, 0, -1, 3, 3]


def test_a_trained_token_is_never_shared():
    tokens, weights = np.arange(3, 63, dtype=np.int32), np.ones(60, dtype=np.float32)
    weights[:20] = 0
    batch = batch_of([Example(tokens, weights, "f", line) for line in (1, 2)], share=True)
    assert batch.segments.tolist() == [[0, 20, -1], [20, 59, 0], [59, 98, 0]]
    assert batch.query.tolist()[:2] == [19, 20]
    weights[1] = 1
    batch = batch_of([Example(tokens, weights, "f", line) for line in (1, 2)], share=True)
    assert batch.segments[:, 2].tolist() == [-1, -1]


def test_a_record_that_ends_where_another_goes_on_keeps_a_token():
    tokens = np.arange(3, 63, dtype=np.int32)
    silent = np.zeros(60, dtype=np.float32)
    batch = batch_of([Example(tokens[:30], silent[:30], "f", 1), Example(tokens, silent, "f", 2)], share=True)
    assert batch.segments.tolist() == [[0, 29, -1], [29, 30, 0], [30, 31, 0]]


def test_the_same_record_twice_in_a_step_is_two_examples():
    one = alike("feedback")[0]
    batch = batch_of([one, one], indices=[4, 4], share=True)
    assert batch.examples == (4, 4)
    assert batch.segments[:, 2].tolist() == [-1, 0, 0]


def test_endless_nesting_ends():
    openings = [np.arange(20 * size) for size in range(1, 200)]
    forest = grow(openings)
    assert max(len(list(root.walk())) for root in forest) <= 200 + LEVELS
    assert sum(root.saved for root in forest) > 0


def test_shorter_beginnings_are_shared_where_asked():
    openings = [np.array([1, 2, 3, 4, 5, 6, 7, one]) for one in (8, 9)]
    assert [branch.end for branch in grow(openings)] == [0, 0]
    assert [(branch.end, branch.members) for branch in grow(openings, 6)] == [(7, (0, 1))]
