"""The reference's log-probabilities of answers and mismatched answers: one forward pass, the figures of two."""

import numpy as np
import pytest
import torch
from tests.unit.data.test_mismatch import prepared
from tests.unit.models.architectures import build

from tunesmith.data.loader import Builder, Microbatches
from tunesmith.data.mismatch import Mismatch
from tunesmith.models.forward import score_only
from tunesmith.models.reference import OtherModel
from tunesmith.objectives.logratios import REFERENCE
from tunesmith.running.references import mismatched_counts, scored_counts
from tunesmith.train.stream_cache import StreamCache
from tunesmith.train.streams import Streams
from tunesmith.types import Task

ANSWERS = [3, 1, 9, 4, 2, 6, 5, 12]
PROMPTS = [5, 14, 2, 8, 3, 9, 4, 3]


class Counting(OtherModel):
    """A reference that remembers how many tokens each forward pass had."""

    def __init__(self, model):
        super().__init__(model)
        self.passes = []

    def logprobs(self, batch):
        self.passes.append(len(batch.tokens))
        return super().logprobs(batch)


@pytest.fixture
def builder(tmp_path) -> Builder:
    store = prepared(tmp_path, PROMPTS, ANSWERS, [index % 2 for index in range(8)])
    weights = np.array(store.weights)
    weights[store.offsets[3] - 1] = 0.0  # an answer whose last token is not scored
    store.weights = weights
    return Builder(store, Task("feedback"), Mismatch(store, 1))


@pytest.fixture
def reference() -> Counting:
    return Counting(build("llama"))


def streams(folder, builder, reference) -> Streams:
    other = StreamCache(folder / "mismatched", mismatched_counts(builder.mismatch))
    caches = StreamCache(folder, scored_counts(builder.prepared)), other
    return Streams(reference, *caches, joint=builder.joint)


def test_an_answer_that_is_cut_has_as_many_figures_as_tokens(tmp_path, builder, reference):
    (cut,) = builder.mismatch.cut
    whole = streams(tmp_path / "cache", builder, reference)
    _, other = figures(whole.attach(builder([0, cut, 7])))
    assert torch.equal(whole.mismatched.collect([0, cut, 7]), other)
    assert len(whole.mismatched.read(cut)) == 1 < ANSWERS[builder.mismatch.partners[cut]]


def figures(batch) -> list[torch.Tensor]:
    return [batch.streams[REFERENCE], batch.mismatched.streams[REFERENCE]]


@pytest.mark.parametrize("cached", [True, False])
def test_one_forward_gives_the_figures_of_two(tmp_path, builder, reference, cached):
    whole = streams(tmp_path / "cache", builder, reference) if cached else Streams(reference, joint=builder.joint)
    microbatches = Microbatches(builder, 60)
    assert len(microbatches) > 1
    for number, batch in enumerate(microbatches, 1):
        own, other = figures(whole.attach(batch))
        assert len(reference.passes) == number
        alone = len(batch.tokens) + len(batch.mismatched.tokens)
        saved = sum(PROMPTS[index] for index in batch.examples)
        assert reference.passes[-1] == alone - saved
        torch.testing.assert_close(own, score_only(reference.model, batch).logprobs, atol=1e-6, rtol=0)
        torch.testing.assert_close(other, score_only(reference.model, batch.mismatched).logprobs, atol=1e-6, rtol=0)


def test_the_second_time_nothing_is_computed(tmp_path, builder, reference):
    whole = streams(tmp_path / "cache", builder, reference)
    batch = builder([0, 3, 5])
    first = figures(whole.attach(batch))
    again = figures(streams(tmp_path / "cache", builder, reference).attach(batch))
    assert len(reference.passes) == 1
    assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("lost", ["values.bin", "mismatched/values.bin"])
def test_lost_figures_come_back_to_the_bit(tmp_path, builder, reference, lost):
    """As after a crash between the two caches: what one batch had given it gives again, whatever was there."""
    batch = builder([0, 3, 5])
    first = figures(streams(tmp_path / "cache", builder, reference).attach(batch))
    path = tmp_path / "cache" / lost
    numbers = np.fromfile(path, dtype=np.float32)
    numbers[numbers != 0] += 1.0
    numbers.tofile(path)
    again = figures(streams(tmp_path / "cache", builder, reference).attach(batch))
    assert all(map(torch.equal, first, again))
    assert reference.passes[0] == reference.passes[1]


def test_figures_that_are_there_stay(tmp_path, builder, reference):
    whole = streams(tmp_path / "cache", builder, reference)
    kept = torch.full((ANSWERS[3],), -0.5)
    whole.cache.keep([3], kept)
    own, _ = figures(whole.attach(builder([0, 3, 5])))
    assert torch.equal(own[ANSWERS[0] : ANSWERS[0] + ANSWERS[3]], kept)
