"""General data among the examples of an epoch: how many, where, which ones, and the same after a resume."""

import json
from itertools import pairwise

import numpy as np
import pytest
from tests.tiny import tiny_tokenizer

from tunesmith.data.config import DataConfig
from tunesmith.data.loader import Builder, OfflineSource
from tunesmith.data.mixing import Mixture, interleave, turn
from tunesmith.data.prepared import prepare
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.types import Task


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Thirty own examples, and eight and four general ones."""
    folder = tmp_path_factory.mktemp("mixing")
    tokenizer = load_tokenizer(tiny_tokenizer(folder / "tokenizer"))
    paths = []
    for name, count in (("own", 30), ("first", 8), ("second", 4)):
        paths.append(folder / f"{name}.jsonl")
        lines = [{"prompt": f"{name} {index}", "completion": "yes " * (1 + index % 3)} for index in range(count)]
        paths[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_HOME", str(folder / "home"))
        general = {"train": [{"path": str(path)} for path in paths[1:]], "share": 0.25}
        settings = DataConfig.model_validate({"train": [{"path": str(paths[0])}], "general": general})
        return prepare(settings.trained, settings, tokenizer)


def source_of(stored, *, seed: int | None = 0, share=0.25, weights=(1.0, 1.0, 1.0), step=8) -> OfflineSource:
    build = Builder(stored, Task(), mixture=Mixture(1, share))
    return OfflineSource(
        build, weights, sequences_per_step=step, tokens_per_step=None, microbatch_tokens=10_000, seed=seed
    )


def test_counts_follow_share_and_weights():
    mixture = Mixture(1, 0.25)
    assert mixture.counts(30, [8, 4]) == [7, 3]
    assert mixture.counts(300, [1, 1, 2]) == [25, 25, 50]
    assert Mixture(1, 0.5).counts(7, [3]) == [7]


def test_general_examples_stand_at_even_distances():
    mixed = interleave(np.arange(27), np.arange(100, 103))
    places = np.flatnonzero(mixed >= 100)
    assert places.tolist() == [5, 15, 25]
    assert mixed[mixed < 100].tolist() == list(range(27))
    assert interleave(np.arange(5), np.arange(0)).tolist() == [0, 1, 2, 3, 4]


def test_a_circle_is_gone_through_before_anything_comes_twice():
    members = np.arange(10, 17)
    drawn = np.concatenate([turn(members, 3, epoch, (1, 2)) for epoch in range(7)])
    assert np.bincount(drawn)[10:].tolist() == [3] * 7


@pytest.mark.parametrize("seed", [0, None])
def test_every_step_has_its_share(stored, seed):
    source = source_of(stored, seed=seed)
    for _ in range(2):
        steps = [[index for group in source.next_groups() for index in group] for _ in range(5)]
        assert [len(step) for step in steps] == [8] * 5
        assert [sum(index >= 30 for index in step) for step in steps] == [2] * 5
        assert sorted(index for step in steps for index in step if index < 30) == list(range(30))


def test_batches_tell_which_sequences_are_general(stored):
    (batch,) = source_of(stored).next_step()
    assert batch.general.tolist() == [float(index >= 30) for index in batch.examples]
    assert batch.to("cpu").general.tolist() == batch.general.tolist()
    assert Builder(stored, Task())(range(3)).general is None


@pytest.mark.parametrize("cut", [0, 3, 5, 12])
def test_a_resume_goes_on_with_the_same_examples(stored, cut):
    straight, first, second = (source_of(stored) for _ in range(3))
    expected = [straight.next_groups() for _ in range(17)]
    found = [first.next_groups() for _ in range(cut)]
    second.restore(json.loads(json.dumps(first.state())))
    assert found + [second.next_groups() for _ in range(17 - cut)] == expected
    assert any(one != other for one, other in pairwise(expected))


def test_ranks_share_the_same_steps(stored):
    whole = source_of(stored)
    build = Builder(stored, Task(), mixture=Mixture(1, 0.25))
    parts = [
        OfflineSource(
            build, (1.0,) * 3, sequences_per_step=8, tokens_per_step=None, microbatch_tokens=50, seed=0, share=(rank, 2)
        )
        for rank in range(2)
    ]
    for _ in range(7):
        together = sorted(index for part in parts for group in part.next_groups() for index in group)
        assert together == sorted(index for group in whole.next_groups() for index in group)


def test_another_share_is_another_source(stored):
    prints = {source_of(stored, share=share).fingerprint() for share in (0.1, 0.25)}
    assert len(prints) == 2
