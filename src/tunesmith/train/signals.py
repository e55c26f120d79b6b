"""Signals that ask a run to save or to stop, noticed at step boundaries."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from tunesmith.errors import Fix, Interrupted, Preempted, TunesmithError


class Request(IntEnum):
    """What was asked, the more urgent the larger: ranks agree by the maximum, with 0 for nothing."""

    SAVE = 1
    INTERRUPT = 2
    TERMINATE = 3

    @property
    def stops(self) -> bool:
        return self is not Request.SAVE


_REQUESTS = {
    signal.SIGUSR1: Request.SAVE,
    signal.SIGINT: Request.INTERRUPT,
    signal.SIGTERM: Request.TERMINATE,
    signal.SIGHUP: Request.TERMINATE,
}
_FIRST = {
    Request.SAVE: "saving after this step, then going on",
    Request.INTERRUPT: "finishing this step and saving; press Ctrl-C again to stop at once without saving",
    Request.TERMINATE: "finishing this step and saving; a second SIGTERM stops at once without saving",
}
_NOT_SAVED = {
    Request.SAVE: "nothing is kept of this, so there is nothing to save",
    Request.INTERRUPT: "finishing this step; press Ctrl-C again to stop at once",
    Request.TERMINATE: "finishing this step; a second SIGTERM stops at once",
}


Poll = Callable[[], None]  # called between batches; raises Cut


class Cut(Exception):
    """What goes on between steps is broken off, because a stop was asked for."""


class Signals:
    """SIGTERM, SIGHUP, SIGINT and SIGUSR1 as requests that the loop polls, while inside `with`.

    The second SIGTERM or SIGINT leaves at once by SystemExit (143 or 130), so that `finally` still releases locks;
    SIGHUP never counts as one of the two, since a terminal that closes sends several. SIGHUP stays ignored where the
    process was started so (nohup). The first one is told with a word of saving where something `saves`.
    Outside the main thread nothing is installed. The old handlers come back after; where they are those of other
    Signals, around these, a stop that came too late for what ended in between is left to them.
    """

    def __init__(self, *, saves: bool = True) -> None:
        self._words = _FIRST if saves else _NOT_SAVED
        self._pending: Request | None = None
        self._asked = False  # by a signal whose second one leaves at once
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in _REQUESTS:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
            around = getattr(handler, "__self__", None)
            if kind is None and isinstance(around, Signals):
                around.take_over(self)
        self._old.clear()

    def take_over(self, inner: Signals) -> None:
        """What was asked for while `inner` was listening, and not answered."""
        if inner._pending is not None and inner._pending.stops:
            self._pending = max(inner._pending, self._pending or inner._pending)
            self._asked |= inner._asked

    def requested(self) -> Request | None:
        """The most urgent request so far; a stop stays, SAVE stays until `saved`."""
        return self._pending

    def poll(self) -> None:
        """Raises Cut once this process was asked to stop."""
        if self._pending is not None and self._pending.stops:
            raise Cut

    def saved(self) -> None:
        """A SAVE request was served."""
        if self._pending is Request.SAVE:
            self._pending = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        request = _REQUESTS[signal.Signals(number)]
        if number == signal.SIGHUP:
            if self._pending is not None and self._pending.stops:
                return
        elif request.stops and self._asked:
            _say("stopping at once" + ("; the last checkpoint stands" if self._words is _FIRST else ""))
            raise SystemExit(128 + number)
        self._asked |= request.stops and number != signal.SIGHUP
        self._pending = max(request, self._pending or request)
        _say(self._words[request])


def _say(text: str) -> None:
    """Write straight to stderr: a handler may run in the middle of a buffered write."""
    try:
        os.write(2, f"tunesmith: {text}\n".encode())
    except OSError:  # the terminal is gone: the request itself still counts
        return


def stop_error(request: Request, step: int, checkpoint: Path, resume: str) -> TunesmithError:
    """The error that ends a run stopped by `request` after its checkpoint was saved: exit code 75 or 130."""
    return stopped(request, f"after step {step}, saved", f"saved: {checkpoint}", resume)


def unmeasured_error(signals: Signals, weights: Path | None, resume: str) -> TunesmithError:
    """The error that ends a run whose training is over, and whose evaluation a signal has broken off."""
    request = signals.requested()
    assert request is not None, "nothing else cuts an evaluation off"
    told = f"the training is finished, its weights are saved: {weights}"
    return stopped(request, "in the evaluation after the training", told, resume)


def stopped(request: Request, when: str, kept: str, resume: str) -> TunesmithError:
    fixes = (Fix("go on from here", command=resume),)
    if request is Request.TERMINATE:
        return Preempted("E130", f"stopped by SIGTERM or SIGHUP {when}", evidence=(kept,), fixes=fixes)
    return Interrupted("E131", f"interrupted {when}", evidence=(kept,), fixes=fixes)
