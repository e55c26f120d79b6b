"""The tracker: the one object through which a training loop writes about itself."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from tunesmith.track.adapters import make_sinks
from tunesmith.track.files import finite
from tunesmith.track.metrics import JsonLines
from tunesmith.track.reader import RESUME, Row
from tunesmith.track.run_dir import RunDir
from tunesmith.track.sinks import About, Sink, SinkReport, finish_all
from tunesmith.track.status import State, StatusWriter
from tunesmith.track.tensorboard import EventFile


class Tracking(Protocol):
    """What the loop may call; `Tracker` writes, `NullTracker` (ranks other than the first) does not."""

    def metrics(self, step: int, tokens: int, values: Mapping[str, float]) -> None: ...

    def event(self, kind: str, fields: Mapping[str, Any]) -> None: ...

    def completion(
        self, step: int, prompt: str, completion: str, rewards: Mapping[str, float] | None = None
    ) -> None: ...

    def bad_batch(self, step: int, about: Mapping[str, Any]) -> None: ...

    def status(
        self, state: State, *, total: int | None = None, phase: str | None = None, exit_code: int | None = None
    ) -> None: ...

    def text(self, line: str) -> None: ...

    def flush(self) -> None: ...

    def offset(self) -> int: ...

    def heal(self, first_step: int) -> None: ...

    def finish(self, state: State, exit_code: int) -> list[SinkReport]: ...


class NullTracker:
    """Writes nothing."""

    def metrics(self, step: int, tokens: int, values: Mapping[str, float]) -> None:
        pass

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        pass

    def completion(self, step: int, prompt: str, completion: str, rewards: Mapping[str, float] | None = None) -> None:
        pass

    def bad_batch(self, step: int, about: Mapping[str, Any]) -> None:
        pass

    def status(
        self, state: State, *, total: int | None = None, phase: str | None = None, exit_code: int | None = None
    ) -> None:
        pass

    def text(self, line: str) -> None:
        pass

    def flush(self) -> None:
        pass

    def offset(self) -> int:
        return 0

    def heal(self, first_step: int) -> None:
        pass

    def finish(self, state: State, exit_code: int) -> list[SinkReport]:
        return []


class Tracker:
    """Writes one attempt of a run: metrics, events, completions, status, log, TensorBoard and sinks.

    Only the process that holds the run's lock may have one. What the run's own files cannot take is MachineError E194;
    what TensorBoard or a sink cannot take is an event.
    """

    def __init__(self, run_dir: RunDir, sinks: Sequence[Sink] = (), attempt: int = 1, tensorboard: bool = True) -> None:
        self.run_dir = run_dir
        self.attempt = attempt
        self._metrics = JsonLines(run_dir.metrics_file)
        self._events = JsonLines(run_dir.events_file)
        self._completions: JsonLines | None = None
        self._log = JsonLines(run_dir.log_file)
        self._sinks = list(sinks)
        self._told: set[str] = set()
        self._step = 0
        self._status = StatusWriter(run_dir.status_file, attempt, step=run_dir.last_step() if attempt > 1 else 0)
        self._board: EventFile | None = None
        if tensorboard:
            self._open_board()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """A run that leaves without `finish` has failed."""
        if self._status.current.active:
            self.finish("finished" if kind is None else "failed", 0 if kind is None else 1)

    def metrics(self, step: int, tokens: int, values: Mapping[str, float]) -> None:
        """Write one row; a step may have several. `tokens` counts from the start of the run."""
        wall = time.time()
        row: Row = {"step": step, "tokens": tokens, "wall": wall, "attempt": self.attempt, **values}
        self._metrics.write(row, step)
        self._step = max(self._step, step)
        self._status.step(self._step)
        if self._board is not None:
            try:
                self._board.write(step, values, wall)
            except OSError as error:
                self._lose_board(error)
        for sink in self._sinks:
            sink.log(row)
            self._tell_failure(sink)

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write one event; the step is the last one written unless `fields` has another."""
        row = {"event": kind, "step": self._step, "wall": time.time(), "attempt": self.attempt, **fields}
        self._events.write(row)

    def completion(self, step: int, prompt: str, completion: str, rewards: Mapping[str, float] | None = None) -> None:
        if self._completions is None:
            self._completions = JsonLines(self.run_dir.completions_file)
        row: Row = {"step": step, "wall": time.time(), "attempt": self.attempt, "prompt": prompt}
        row |= {"completion": completion, "rewards": dict(rewards or {})}
        self._completions.write(row, step)
        for sink in self._sinks:
            sink.completion(row)

    def bad_batch(self, step: int, about: Mapping[str, Any]) -> None:
        """Keep the evidence of a bad step in `bad_batches/`."""
        self.run_dir.bad_batch(step, about)

    def status(
        self, state: State, *, total: int | None = None, phase: str | None = None, exit_code: int | None = None
    ) -> None:
        """Change the state in `status.json`; what is None stays. `total` counts all steps of the run."""
        self._status.set(state, total=total, phase=phase, exit_code=exit_code)

    def text(self, line: str) -> None:
        """Add a line with its time to `log.txt`."""
        self._log.write_text(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")

    def flush(self) -> None:
        """Make everything so far survive a power cut; called before a checkpoint is committed."""
        for file in self._files():
            file.sync(self._step)

    def offset(self) -> int:
        """Bytes of `metrics.jsonl` so far."""
        return self._metrics.offset()

    def heal(self, first_step: int) -> None:
        """This attempt begins at `first_step`, the checkpoint's step + 1: earlier rows from there on no longer hold."""
        mark = {"event": RESUME, "step": first_step, "wall": time.time(), "attempt": self.attempt}
        self._step = first_step - 1
        self._status.begin(self._step)
        if self._completions is None and self.run_dir.completions_file.exists():
            self._completions = JsonLines(self.run_dir.completions_file)
        for file in (self._metrics, self._events, self._completions):
            if file is not None:
                file.write(mark)
        self.flush()
        if self._board is not None:
            try:
                self._board.resume(first_step)
            except OSError as error:
                self._lose_board(error)

    def finish(self, state: State, exit_code: int) -> list[SinkReport]:
        """Write the end: sinks get ten seconds, what they lost becomes an event, then the final status."""
        reports = finish_all(self._sinks, exit_code)
        for report in reports:
            if report.lost or report.failure:
                self.event("sink", finite({"name": report.name, "lost": report.lost, "failure": report.failure}))
        self.flush()
        self._status.close(state, exit_code)
        for file in self._files():
            file.close()
        if self._board is not None:
            self._board.close()
        return reports

    def _files(self) -> list[JsonLines]:
        return [file for file in (self._metrics, self._events, self._completions, self._log) if file is not None]

    def _open_board(self) -> None:
        try:
            self._board = EventFile(self.run_dir.tensorboard, self.attempt)
        except OSError as error:
            self._lose_board(error)

    def _lose_board(self, error: OSError) -> None:
        """TensorBoard files are a copy of the metrics: without them the run goes on."""
        self._board = None
        self.event("warning", {"code": "W190", "message": f"TensorBoard files end here: {error.strerror}"})

    def _tell_failure(self, sink: Sink) -> None:
        if sink.failure and sink.name not in self._told:
            self._told.add(sink.name)
            self.event("warning", {"code": "W191", "message": f"{sink.name}: {sink.failure}"})


def open_tracker(
    run_dir: RunDir, report_to: Sequence[str], attempt: int, config: Mapping[str, Any] | None = None
) -> Tracker:
    """A tracker with the sinks that `run.report_to` names, started; MachineError E172 when a package is missing."""
    sinks = make_sinks(tuple(report_to))
    tracker = Tracker(run_dir, sinks, attempt, tensorboard="tensorboard" in report_to)
    about = About(run_dir.id, Path(run_dir.path), dict(config or {}))
    for sink in sinks:
        sink.start(about)
    return tracker
