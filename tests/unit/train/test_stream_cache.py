"""Figures kept per example: exact, shared, and never trusted half written."""

import multiprocessing

import numpy as np
import pytest
import torch

from tunesmith.train.stream_cache import StreamCache

COUNTS = np.array([3, 1, 0, 4])


def test_what_is_kept_is_read_again_by_another_process(tmp_path):
    first = StreamCache(tmp_path, COUNTS)
    assert first.missing() == [0, 1, 2, 3]
    assert first.collect([3, 0]) is None
    values = torch.tensor([-1.5, -2.25, -0.1, -7.0, 0.3, 0.1, 0.2])
    first.keep([3, 0], values)
    second = StreamCache(tmp_path, COUNTS)
    assert second.missing() == [1, 2]
    assert torch.equal(second.collect([3, 0]), values)
    assert torch.equal(second.collect([0]), values[4:])


def test_the_first_figures_stay(tmp_path):
    cache = StreamCache(tmp_path, COUNTS)
    cache.keep([1], torch.tensor([1.0]))
    cache.keep([1], torch.tensor([2.0]))
    assert cache.collect([1]).item() == 1.0


def test_half_written_figures_count_as_missing(tmp_path):
    cache = StreamCache(tmp_path, COUNTS)
    cache.keep([0], torch.tensor([1.0, 2.0, 3.0]))
    cache.values[1] = 9.0
    assert cache.collect([0]) is None
    assert 0 in cache.missing()


def write_all(folder, start: int) -> None:
    cache = StreamCache(folder, np.ones(200, dtype=np.int64))
    for index in range(start, 200, 4):
        cache.keep([index], torch.tensor([float(index)]))


def test_processes_that_begin_together_lose_nothing(tmp_path):
    for round in range(5):
        folder = tmp_path / str(round)
        context = multiprocessing.get_context("fork")
        writers = [context.Process(target=write_all, args=(folder, start)) for start in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert StreamCache(folder, np.ones(200, dtype=np.int64)).missing() == []


def test_figures_that_do_not_fit_are_our_fault(tmp_path):
    with pytest.raises(AssertionError, match="other tokens"):
        StreamCache(tmp_path, COUNTS).keep([1], torch.tensor([1.0, 2.0]))


def test_an_answer_without_scored_tokens_can_be_kept(tmp_path):
    cache = StreamCache(tmp_path, COUNTS)
    cache.keep([2], torch.zeros(0))
    assert len(cache.collect([2])) == 0
