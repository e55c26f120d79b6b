"""Sinks: other tools that are told of a run, each on its own thread that can neither stop nor slow it."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tunesmith.track.reader import Row
from tunesmith.track.stdout import silence_thread

CAPACITY = 1024  # rows waiting; more are dropped and counted
PATIENCE = 5  # failures in a row after which a sink is given up
FINISH_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class About:
    """What a sink is told at the start; `config` is the resolved recipe as plain data."""

    id: str
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)


class Adapter(Protocol):
    """One foreign tool; every call comes from one thread, in order, and may raise, block or print."""

    def start(self, about: About) -> None: ...

    def log(self, row: Row) -> None:
        """`row` holds `step`, `tokens`, `wall`, `attempt` and the metrics."""
        ...

    def completion(self, row: Row) -> None: ...

    def finish(self, exit_code: int) -> None: ...


@dataclass(frozen=True, slots=True)
class SinkReport:
    """How a sink fared: `lost` rows did not arrive; `failure` is its last error, empty when there was none."""

    name: str
    sent: int
    lost: int
    failure: str
    finished: bool


class Sink:
    """An adapter on a daemon thread behind a bounded queue; `log` and `completion` return at once and never raise."""

    def __init__(self, name: str, adapter: Adapter, capacity: int = CAPACITY) -> None:
        self.name = name
        self._adapter = adapter
        self._queue: queue.Queue[tuple[str, Row]] = queue.Queue(capacity)
        self._closing = threading.Event()
        self._exit_code = 0
        self._thread: threading.Thread | None = None
        self._sent = 0
        self._offered = 0
        self._failures_in_a_row = 0
        self._finished = False
        self.failure = ""

    def start(self, about: About) -> None:
        """Begin in the background; a failure shows in `failure`."""
        self._thread = threading.Thread(target=self._work, args=(about,), name=f"sink {self.name}", daemon=True)
        self._thread.start()

    def log(self, row: Row) -> None:
        self._offer("log", row)

    def completion(self, row: Row) -> None:
        self._offer("completion", row)

    def finish(self, exit_code: int, seconds: float = FINISH_SECONDS) -> SinkReport:
        """Give the thread some time to send the rest, then leave it behind."""
        self._exit_code = exit_code
        self._closing.set()
        if self._thread is not None:
            self._thread.join(seconds)
        finished, sent = self._finished, self._sent
        failure = self.failure or ("" if finished else f"not done within {seconds:g} s")
        return SinkReport(self.name, sent, self._offered - sent, failure, finished)

    def _offer(self, kind: str, row: Row) -> None:
        self._offered += 1
        try:
            self._queue.put_nowait((kind, row))
        except queue.Full:
            return

    def _work(self, about: About) -> None:
        with silence_thread():
            try:
                self._adapter.start(about)
            except (Exception, SystemExit) as error:  # foreign code: whatever it raises must not reach the run
                self.failure = _said(error)
                return
            while self._failures_in_a_row < PATIENCE:
                try:
                    kind, row = self._queue.get(timeout=0.2)
                except queue.Empty:
                    if self._closing.is_set():
                        break
                    continue
                self._send(kind, row)
            try:
                self._adapter.finish(self._exit_code)
                self._finished = self._failures_in_a_row < PATIENCE
            except (Exception, SystemExit) as error:  # foreign code, as above
                self.failure = _said(error)

    def _send(self, kind: str, row: Row) -> None:
        try:
            self._adapter.log(row) if kind == "log" else self._adapter.completion(row)
        except (Exception, SystemExit) as error:  # foreign code, as above
            self.failure = _said(error)
            self._failures_in_a_row += 1
        else:
            self._sent += 1
            self._failures_in_a_row = 0


def finish_all(sinks: list[Sink], exit_code: int, seconds: float = FINISH_SECONDS) -> list[SinkReport]:
    """Finish every sink within one common limit."""
    end = time.monotonic() + seconds
    for sink in sinks:
        sink.finish(exit_code, 0.0)
    return [sink.finish(exit_code, max(0.0, end - time.monotonic())) for sink in sinks]


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
