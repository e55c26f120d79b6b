"""The supervisor's judgements by themselves: who hangs, who failed first, when to start again."""

import os
import signal
import time

import pytest

from tunesmith.distributed.beats import Beat, Beats
from tunesmith.distributed.ending import Ended, Ending, diagnosed
from tunesmith.distributed.heart import Heart
from tunesmith.distributed.launch import LONG_SECONDS, Launch, supervise
from tunesmith.errors import Diagnostic, RankDied, TunesmithError, UsageError, restored

NEVER_ENDING = []  # kept: an exchange that is forgotten is over


class Standing:
    """A process that neither ends nor is there."""

    pid = 2**22

    def poll(self):
        return None


def beating(folder, *hearts) -> Launch:
    """A launch whose ranks did what `hearts` do."""
    launch = Launch(folder, len(hearts), lambda rank: Standing(), hang_seconds=10)
    launch.processes = [Standing() for _ in hearts]
    for rank, live in enumerate(hearts):
        live(Heart(launch.beats.row(rank)))
    return launch


def waiting(heart):
    computing(heart)
    enter(heart.talking("sum", 3))


def enter(exchange):
    """Begin an exchange that never ends."""
    NEVER_ENDING.append(exchange)
    exchange.__enter__()


def computing(heart):
    heart.begin(1)
    heart.end()
    heart.begin(2)


@pytest.mark.row("X2")
def test_the_one_that_does_not_wait_hangs_though_it_began_later(tmp_path):
    launch = beating(tmp_path, waiting, computing)
    assert launch.beats.read(1).stamped >= launch.beats.read(0).stamped
    assert launch.find_hung(time.monotonic() + 9) is None
    assert launch.find_hung(time.monotonic() + 11) == 1


@pytest.mark.row("X4")
def test_of_two_that_wait_the_one_with_fewer_exchanges_hangs(tmp_path):
    def ahead(heart):
        computing(heart)
        with heart.talking("sum", 3):
            pass
        enter(heart.talking("sum", 3))

    assert beating(tmp_path, ahead, waiting).find_hung(time.monotonic() + 11) == 1


def test_what_comes_between_steps_may_take_long(tmp_path):
    def saving(heart):
        computing(heart)
        heart.end()

    launch = beating(tmp_path, waiting, saving)
    assert launch.find_hung(time.monotonic() + 100) is None
    assert launch.find_hung(time.monotonic() + LONG_SECONDS + 1) == 1


def test_a_first_step_may_take_long(tmp_path):
    launch = beating(tmp_path, lambda heart: heart.begin(1), lambda heart: heart.begin(1))
    assert launch.find_hung(time.monotonic() + 100) is None


def test_a_beat_is_what_the_heart_said(tmp_path):
    beats = Beats(tmp_path / "beats", 2)
    heart = Heart(beats.row(1))
    waiting(heart)
    beat = Beats(tmp_path / "beats", 2).read(1)
    assert str(beat) == "step 2, waiting for the others, exchange 1: sum of 3"
    assert beat.in_step
    assert beats.read(0) == Beat()


@pytest.mark.row("X3")
def test_the_first_failure_is_not_that_of_a_rank_that_only_lost_the_others(tmp_path):
    (tmp_path / "rank0.error").write_text(
        '{"code": 7, "diagnostics": [{"code": "E499", "message": "lost", "level": "error", "where": null,'
        ' "evidence": [], "fixes": []}]}'
    )
    ended = diagnosed(tmp_path, [Ending(0, 7), Ending(1, 13), Ending(2, -9, by_us=True)], [Beat()] * 3)
    assert (ended.code, ended.rank) == (13, 1)
    assert "rank 1 ended with code 13 in step 0 without a word" in str(ended.error)
    lines = [line.partition(" (")[0] for line in ended.error.diagnostic.evidence[1:]]
    assert lines == ["rank 0: lost the others", "rank 2: ended by the launcher"]


def test_a_stop_before_the_first_step_is_no_failure_to_answer_by_a_restart(tmp_path):
    ended = diagnosed(tmp_path, [Ending(0, -15), Ending(1, -15)], [Beat()] * 2, asked=15)
    assert (ended.code, ended.asked) == (143, True)
    assert supervise(lambda number: ended, 3, lambda *_: pytest.fail("started again")) is ended


@pytest.mark.row("P3")
def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    launch = beating(tmp_path, computing)
    before, own = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)
    try:
        with launch.signals_passed_on():
            os.kill(os.getpid(), signal.SIGHUP)
            assert launch.asked is None
            assert signal.getsignal(signal.SIGTERM) is not own
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_error_survives_its_way_through_a_file():
    error = UsageError("E020", "wrong", evidence=["a"], fixes=["b"], others=[Diagnostic("W010", "x", "warning")])
    again = restored(error.exit_code, [each.to_json() for each in error.diagnostics])
    assert type(again) is UsageError
    assert again.diagnostics == error.diagnostics
    assert str(again) == str(error)


def ends(*steps: int, code: int = 7) -> list[Ended]:
    return [Ended(code, RankDied("E498", "died"), 0, step) for step in steps]


@pytest.mark.row("X1")
@pytest.mark.parametrize(
    ("given", "restarts", "attempts"),
    [
        ([*ends(3), Ended()], 2, 2),  # once, then well
        (ends(3, 5, 7), 2, 3),  # used up
        (ends(3, 3, 3), 5, 2),  # the same step twice
        (ends(3, 5, 3), 5, 3),  # also when another one failed in between
        (ends(3, code=2), 5, 1),  # a mistake of the user's
        (ends(3, code=5), 5, 1),
        (ends(3, code=75), 5, 1),
    ],
)
def test_restarts(given, restarts, attempts):
    told = []
    ended = supervise(lambda number: given[number], restarts, lambda failed, number: told.append(number))
    assert told == list(range(1, attempts))
    assert ended.code == given[attempts - 1].code
    twice = attempts > 1 and ended.code and ended.step in [each.step for each in given[: attempts - 1]]
    assert ("failed twice" in str(ended.error)) == bool(twice)


def test_restored_errors_of_unknown_codes_are_ordinary_failures():
    assert type(restored(13, [Diagnostic("E498", "x").to_json()])) is TunesmithError
