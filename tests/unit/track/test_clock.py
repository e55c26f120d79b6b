"""The clock charges every second to one place, and marks mean nothing while no clock runs."""

import time
from dataclasses import dataclass

import pytest

from tunesmith.track import clock
from tunesmith.track.clock import Clock, current, part, phase


@dataclass
class Time:
    """Seconds that pass only when told to; the processor works half of them."""

    now: float = 100.0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.now / 2


TIME = Time()


def spin(seconds: float) -> None:
    TIME.now += seconds


@pytest.fixture
def running(monkeypatch):
    monkeypatch.setattr(clock, "time", TIME)
    made = Clock()
    made.start()
    yield made
    made.stop()
    assert clock.RUNNING == []


def walls(made: Clock) -> dict[tuple[str, str], float]:
    return {place: spent.wall for place, spent in made.spent.items()}


def test_time_goes_to_the_innermost_mark_and_adds_up_to_the_whole(running):
    with phase("forward"):
        spin(2)
        with part("qkv"):
            spin(3)
            with part("norms"):
                spin(1)
            spin(4)
    spin(0.5)
    running.stop()
    spin(9)
    wanted = {("forward", ""): 2, ("forward", "qkv"): 7, ("forward", "norms"): 1, ("other", ""): 0.5}
    assert walls(running) == wanted
    assert {place: spent.cpu for place, spent in running.spent.items()} == {k: v / 2 for k, v in wanted.items()}


def test_parts_are_told_apart_in_forward_and_backward_only(running):
    for name in ("forward", "backward", "evaluation"):
        with phase(name), part("attention"):
            spin(1)
    assert walls(running) == {("forward", "attention"): 1, ("backward", "attention"): 1, ("evaluation", ""): 1} | {
        (name, ""): 0 for name in ("forward", "backward", "other")
    }


def test_a_phase_inside_another_one_has_its_own_time(running):
    with phase("evaluation"):
        with phase("checkpoint"):
            spin(2)
        assert running.stack[-1] == ("evaluation", "")
    assert running.spent["checkpoint", ""].wall == 2


def test_marks_that_were_open_before_the_start_or_after_the_stop_do_no_harm():
    made = Clock()
    with phase("forward"):
        with part("qkv"):
            made.start()
        with part("out"):
            pass
    assert made.stack == [("other", "")]
    with phase("backward"), part("down"):
        made.stop()
    made.stop()
    assert clock.RUNNING == []
    assert made.spent.keys() <= {("other", ""), ("backward", ""), ("backward", "down")}


def test_a_decorated_function_and_an_exception(running):
    @phase("optimizer")
    def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert running.stack == [("other", "")]
    assert ("optimizer", "") in running.spent


def test_a_gradient_is_charged_to_the_part_of_its_forward_pass(running):
    with phase("forward"), part("down"):
        mark = current()
    with phase("backward"), mark:
        spin(1)
    assert running.spent["backward", "down"].wall == 1


def test_without_a_clock_nothing_is_kept_and_little_is_paid():
    mark = part("qkv")
    started = time.process_time()
    for _ in range(10_000):
        with mark:
            pass
    assert time.process_time() - started < 0.1
    assert clock.RUNNING == []
    assert (current().phase, current().part) == ("", "")


def test_a_device_is_waited_for_before_the_time_is_read():
    waited: list[int] = []
    made = Clock(lambda: waited.append(1))
    made.start()
    with phase("forward"):
        pass
    made.stop()
    assert len(waited) == 3
