"""Steps built ahead are the source's own: same batches, same places to resume from, errors where they belong."""

import threading
import time

import pytest
from tests.unit.data.test_loader import prepared, source

from tunesmith.data.ahead import DEPTH, Ahead
from tunesmith.data.loader import Builder
from tunesmith.types import Task


def shown(batches):
    return [(batch.records, batch.tokens.tolist(), batch.segments.tolist()) for batch in batches]


def test_batches_places_and_counts_are_those_of_the_source(tmp_path):
    store = prepared(tmp_path)
    alone, ahead = source(store), Ahead(source(store))
    for _ in range(7):
        assert (ahead.state(), ahead.epoch()) == (alone.state(), alone.epoch())
        assert shown(ahead.next_step()) == shown(alone.next_step())
        assert (ahead.step_tokens, ahead.step_saved) == (alone.step_tokens, alone.step_saved)
    assert ahead.fingerprint() == alone.fingerprint()


def test_a_resume_drops_what_was_built_ahead(tmp_path):
    store = prepared(tmp_path)
    ahead, other = Ahead(source(store)), source(store)
    states, steps = [], []
    for _ in range(5):
        states.append(ahead.state())
        steps.append(shown(ahead.next_step()))
    ahead.restore(states[2])
    assert ahead.state() == states[2]
    assert [shown(ahead.next_step()) for _ in range(3)] == steps[2:]
    other.restore(states[3])
    assert shown(other.next_step()) == steps[3]


class Faulty(Builder):
    """Fails at its third microbatch."""

    built = 0

    def __call__(self, indices):
        self.built += 1
        if self.built > 2:
            raise ValueError("bad record")
        return super().__call__(indices)


def test_a_fault_is_raised_by_the_step_that_has_it(tmp_path):
    behind = source(prepared(tmp_path), microbatch=10**6)
    behind.build = Faulty(behind.prepared, Task())
    ahead = Ahead(behind)
    ahead.next_step()
    ahead.next_step()
    with pytest.raises(ValueError, match="bad record"):
        ahead.next_step()


def test_one_thread_works_ahead_and_stays_within_its_bound(tmp_path):
    behind = source(prepared(tmp_path))
    threads, counted = set(), []
    made = behind.next_step

    def watched():
        threads.add(threading.current_thread())
        counted.append(1)
        return made()

    behind.next_step = watched
    ahead = Ahead(behind)
    ahead.next_step()
    time.sleep(0.2)
    assert len(counted) == 1 + DEPTH
    ahead.next_step()
    assert len(threads) == 1
    assert threading.main_thread() not in threads


def test_training_does_not_wait_for_steps_that_are_cheaper_to_build_than_to_compute(tmp_path):
    behind = source(prepared(tmp_path))
    made = behind.next_step

    def slow():
        time.sleep(0.05)
        return made()

    behind.next_step = slow
    ahead = Ahead(behind)
    ahead.next_step()
    waited = 0.0
    for _ in range(5):
        time.sleep(0.1)  # a step
        began = time.monotonic()
        ahead.next_step()
        waited += time.monotonic() - began
    assert waited < 0.05
