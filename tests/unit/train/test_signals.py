"""Signals become requests; a second one leaves at once."""

import os
import signal
import threading
from pathlib import Path

import pytest

from tunesmith.train.signals import Request, Signals, stop_error


def _send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_nothing_is_requested_at_first_and_old_handlers_return():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)]
    with Signals() as signals:
        assert signals.requested() is None
        assert signal.getsignal(signal.SIGHUP) not in before
    after = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)]
    assert after == before


def test_p03_first_interrupt_is_a_request_that_says_so(capfd):
    with Signals() as signals:
        _send(signal.SIGINT)
        assert signals.requested() is Request.INTERRUPT
        assert signals.requested().stops
    assert "press Ctrl-C again" in capfd.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_p03_second_signal_leaves_at_once(number, code):
    with Signals():
        _send(number)
        with pytest.raises(SystemExit) as caught:
            _send(number)
    assert caught.value.code == code


def test_p04_save_request_is_served_once():
    with Signals() as signals:
        _send(signal.SIGUSR1)
        assert signals.requested() is Request.SAVE
        assert not signals.requested().stops
        signals.saved()
        assert signals.requested() is None


def test_a_stop_outranks_a_save_and_stays():
    with Signals() as signals:
        _send(signal.SIGTERM)
        _send(signal.SIGUSR1)
        signals.saved()
        assert signals.requested() is Request.TERMINATE


def test_p03_hangups_ask_to_stop_and_never_leave_at_once(capfd):
    with Signals() as signals:
        _send(signal.SIGHUP)
        assert signals.requested() is Request.TERMINATE
        _send(signal.SIGHUP)
        _send(signal.SIGTERM)  # the first one
        _send(signal.SIGHUP)
        with pytest.raises(SystemExit) as caught:
            _send(signal.SIGTERM)
    assert caught.value.code == 143
    assert "saving" in capfd.readouterr().err


def test_p03_a_hangup_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            _send(signal.SIGHUP)
            assert signals.requested() is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def _answered() -> None:
    with Signals():
        signal.raise_signal(signal.SIGTERM)
        raise ValueError("answered")


@pytest.mark.row("P1")
def test_a_stop_that_what_ended_did_not_answer_is_left_to_those_around():
    with Signals() as around:
        with Signals() as inner:
            signal.raise_signal(signal.SIGTERM)
        assert inner.requested() is around.requested() is Request.TERMINATE
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)  # the second one
    with Signals() as around:
        with pytest.raises(ValueError, match="answered"):
            _answered()
        assert around.requested() is None
        with Signals():
            signal.raise_signal(signal.SIGUSR1)
        assert around.requested() is None


def test_another_thread_installs_nothing():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def body() -> None:
        with Signals() as signals:
            seen.append((signals.requested(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


@pytest.mark.parametrize(("request_", "code"), [(Request.TERMINATE, 75), (Request.INTERRUPT, 130)])
def test_stop_errors_carry_the_exit_code_and_the_way_back(request_, code):
    error = stop_error(request_, 12, Path("checkpoints/step-12"), "tunesmith runs resume demo")
    assert error.exit_code == code
    assert "tunesmith runs resume demo" in str(error)
    assert "step-12" in str(error)
