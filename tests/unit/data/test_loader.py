"""Order, mixture, steps, ranks and resume of the offline source, on a prepared folder written by hand."""

import json

import numpy as np
import pytest

from tunesmith.data.loader import Builder, OfflineSource
from tunesmith.data.prepared import Prepared
from tunesmith.types import Task


def prepared(folder, lengths=(5, 9, 4, 7, 3, 8, 6), bounds=None) -> Prepared:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "places.npy", np.array([(0, line + 1) for line in range(len(lengths))]))
    np.concatenate([np.full(length, index + 3) for index, length in enumerate(lengths)]).astype(np.int32).tofile(
        folder / "tokens.bin"
    )
    weights = np.ones(offsets[-1], dtype=np.float32)
    weights[offsets[:-1]] = 0
    weights.tofile(folder / "weights.bin")
    report = {"records": len(lengths), "examples": len(lengths), "tokens": 0, "trained_tokens": 0, "dropped": {}}
    about = {"key": "k", "files": ["f"], "bounds": bounds or [0, len(lengths)], "report": report}
    (folder / "about.json").write_text(json.dumps(about))
    return Prepared(folder)


def source(store, weights=(1.0,), *, sequences=3, tokens=None, share=(0, 1), shuffle=True, microbatch=12):
    return OfflineSource(
        Builder(store, Task()),
        weights,
        sequences_per_step=None if tokens else sequences,
        tokens_per_step=tokens,
        microbatch_tokens=microbatch,
        seed=3 if shuffle else None,
        share=share,
    )


def records(batches) -> list[str]:
    return sorted(record for batch in batches for record in batch.records)


def test_every_epoch_holds_every_example_once_in_another_order(tmp_path):
    offline = source(prepared(tmp_path))
    orders = [offline.epoch_order(epoch).tolist() for epoch in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(7))
    assert orders[0] != orders[1]
    assert offline.epoch_order(0).tolist() == orders[0]


def test_the_last_step_of_an_epoch_is_smaller_and_nothing_is_dropped(tmp_path):
    offline = source(prepared(tmp_path))
    assert offline.steps_for(2) == 6
    sizes = [len(records(offline.next_step())) for _ in range(6)]
    assert sizes == [3, 3, 1, 3, 3, 1]
    assert offline.epoch() == 2.0


def test_tokens_per_step_is_a_ceiling_that_one_long_example_may_pass(tmp_path):
    offline = source(prepared(tmp_path), tokens=8, shuffle=False)
    steps = [offline.next_step() for _ in range(offline.steps_for(1))]
    assert [records(step) for step in steps] == [["f:1"], ["f:2"], ["f:3"], ["f:4"], ["f:5"], ["f:6"], ["f:7"]]
    offline = source(prepared(tmp_path), tokens=14, shuffle=False)
    assert records(offline.next_step()) == ["f:1", "f:2"]
    assert offline.step_tokens == 14


def test_a_fraction_of_an_epoch_is_a_fraction_of_its_steps(tmp_path):
    assert source(prepared(tmp_path)).steps_for(1.5) == 5


def test_microbatches_keep_the_token_limit(tmp_path):
    offline = source(prepared(tmp_path), sequences=7)
    batches = offline.next_step()
    assert len(batches) > 1
    assert all(len(batch.records) == 1 or len(batch.tokens) <= 12 for batch in batches)


def test_weights_repeat_a_source_and_take_rotating_shares(tmp_path):
    offline = source(prepared(tmp_path, bounds=[0, 4, 7]), weights=(0.5, 2.0))
    first, second = offline.epoch_order(0).tolist(), offline.epoch_order(1).tolist()
    assert len(first) == 2 + 6
    halves = [{index for index in order if index < 4} for order in (first, second)]
    assert halves[0] | halves[1] == {0, 1, 2, 3}


@pytest.mark.parametrize("tokens", [None, 15])
def test_resume_continues_with_the_same_batches_in_epoch_two(tmp_path, tokens):
    store = prepared(tmp_path)
    steady, stopped = source(store, tokens=tokens), source(store, tokens=tokens)
    for _ in range(5):
        steady.next_step()
        stopped.next_step()
    state = json.loads(json.dumps(stopped.state()))
    resumed = source(store, tokens=tokens)
    resumed.restore(state)
    for _ in range(6):
        wanted, got = steady.next_step(), resumed.next_step()
        assert [batch.records for batch in wanted] == [batch.records for batch in got]
        assert [batch.tokens.tolist() for batch in wanted] == [batch.tokens.tolist() for batch in got]


@pytest.mark.parametrize("world", [2, 4, 9])
def test_x09_ranks_share_each_step_without_loss_or_overlap(tmp_path, world):
    store = prepared(tmp_path)
    alone = source(store)
    ranks = [source(store, share=(rank, world)) for rank in range(world)]
    for _ in range(5):
        wanted = records(alone.next_step())
        assert sorted(record for rank in ranks for record in records(rank.next_step())) == wanted
        assert {rank.step_tokens for rank in ranks} == {alone.step_tokens}


def test_fingerprint_changes_with_the_seed_and_not_with_the_position(tmp_path):
    store = prepared(tmp_path)
    one = source(store)
    before = one.fingerprint()
    one.next_step()
    assert one.fingerprint() == before
    assert source(store, sequences=4).fingerprint() != before
