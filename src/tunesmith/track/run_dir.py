"""A run is a directory: its paths, its lock, and the files that are written once."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.controls import visible
from tunesmith.errors import BadInput, Fix, UsageError, Where
from tunesmith.regular import read_regular
from tunesmith.track import lock
from tunesmith.track.files import LARGEST, disk_error, read_object, replace_text, to_json
from tunesmith.track.status import ACTIVE, State, Status, observed, read_status

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MARKS = ("run.json", "status.json", "config.yaml")


@dataclass(frozen=True, slots=True)
class RunDir:
    """`runs/<id>/`; nothing is written before it is asked for."""

    path: Path

    @classmethod
    def create(cls, folder: Path, name: str | None = None, *, slug: str = "run") -> RunDir:
        """Make a new directory in `folder`: exactly `name`, or `<date>-<slug>` with `-2`, `-3` ... when taken.

        UsageError E190 when `name` is no file name or its directory holds something, MachineError E194 when it cannot
        be made.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return cls(_named(folder, name) if name is not None else _dated(folder, slug))
        except OSError as error:
            raise disk_error(error, Path(error.filename or folder)) from error

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """An existing run; UsageError E191 when `path` holds none."""
        if not is_run(path):
            evidence = () if path.is_dir() else ("there is no such folder",)
            fix = Fix("list the runs", command="tunesmith runs")
            raise UsageError("E191", f"{path} is not a run", where=Where(str(path)), evidence=evidence, fixes=[fix])
        return cls(path)

    @property
    def id(self) -> str:
        return self.path.resolve().name

    @property
    def run_file(self) -> Path:
        return self.path / "run.json"

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.json"

    @property
    def status_file(self) -> Path:
        return self.path / "status.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def completions_file(self) -> Path:
        return self.path / "completions.jsonl"

    @property
    def log_file(self) -> Path:
        return self.path / "log.txt"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tb"

    @property
    def profile_file(self) -> Path:
        return self.path / "profile.json"

    @property
    def profile_text(self) -> Path:
        return self.path / "profile.txt"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def lock(self) -> AbstractContextManager[None]:
        """Own the directory inside `with`; UsageError E192 (exit code 2) names the process that already does."""
        return lock.hold(self.path)

    def next_attempt(self) -> int:
        """1 for a new run, one more at every resume."""
        try:
            return self.read_status().attempt + 1 if self.status_file.exists() else 1
        except BadInput:  # a damaged status must not stand in the way of a resume
            return 2

    def last_step(self) -> int:
        """The last step that an earlier attempt told of; 0 when there was none, or its status is damaged."""
        try:
            return self.read_status().step if self.status_file.exists() else 0
        except BadInput:
            return 0

    def seen(self) -> tuple[State | None, int]:
        """The state to believe and the last step; None where no status tells."""
        try:
            status = self.read_status() if self.status_file.exists() else None
        except BadInput:
            return "damaged", 0
        return (None, 0) if status is None else (observed(status)[0], status.step)

    def write_run(self, about: Mapping[str, Any]) -> None:
        """Write `run.json` with `id` and `created`; a second call is UsageError E190."""
        content = {"id": self.id, "created": time.time(), **about}
        self._write_once(self.run_file, to_json(content, indent=1) + "\n")

    def write_config(self, text: str) -> None:
        """Write the resolved recipe as YAML; it stands once `run.json` is written."""
        self._write_once(self.config_file, text)

    def add_to_run(self, about: Mapping[str, Any]) -> None:
        """Put what was found out later into `run.json`; the rest stays."""
        replace_text(self.run_file, to_json({**self.read_run(), **about}, indent=1) + "\n")

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Write the plan; it stands once `run.json` is written."""
        self._write_once(self.plan_file, to_json(dict(plan), indent=1) + "\n")

    def read_run(self) -> dict[str, Any]:
        return read_object(self.run_file)

    def read_plan(self) -> dict[str, Any]:
        return read_object(self.plan_file)

    def read_status(self) -> Status:
        return read_status(self.status_file)

    def read_config(self) -> str:
        """The text of `config.yaml`; BadInput E193 when it is missing."""
        try:
            return read_regular(self.config_file, LARGEST).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            where = Where(str(self.config_file))
            raise BadInput("E193", "config.yaml cannot be read", where=where, evidence=[str(error)]) from error

    def crash(self, text: str) -> Path:
        """Keep a traceback in `crash/`."""
        return self._evidence("crash", time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}.txt", visible(text))

    def bad_batch(self, step: int, about: Mapping[str, Any]) -> Path:
        """Keep the evidence of a skipped or fatal step in `bad_batches/`; a later attempt replaces it."""
        return self._evidence("bad_batches", f"step-{step}.json", to_json(dict(about), indent=1) + "\n")

    def _evidence(self, folder: str, name: str, text: str) -> Path:
        path = self.path / folder / name
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise disk_error(error, path.parent) from error
        replace_text(path, text)
        return path

    def _write_once(self, path: Path, text: str) -> None:
        if self.run_file.exists():
            fix = Fix("start another run: run.name=NAME")
            raise UsageError("E190", f"{path.name} of this run exists", where=Where(str(path)), fixes=[fix])
        replace_text(path, text)


def is_run(path: Path) -> bool:
    """Whether a directory holds a run, damaged or not."""
    try:
        return any((path / name).exists() for name in MARKS)
    except PermissionError:  # shown as damaged rather than left out
        return True


def check_empty(path: Path) -> None:
    """UsageError E190 where a new run of this name would find something; an unfinished run can be gone on with."""
    if not path.is_dir() or all(entry.name == lock.LOCK for entry in path.iterdir()):
        return
    where = Where(str(path), field="run.name")
    other = Fix("another name: run.name=NAME"), Fix("leave run.name out", effect="date and method name the run")
    run = RunDir(path)
    state, step = run.seen()
    if state is None or not run.config_file.exists():
        raise UsageError("E190", f"{path} already holds something", where=where, fixes=other)
    named = run.id if path.parent == Path("runs") else path
    if state == "finished" or state in ACTIVE:
        fix = Fix("look at it", command=f"tunesmith runs show {named}")
        told = "a finished run" if state == "finished" else "a run that is under way"
        raise UsageError("E190", f"{path} already holds {told}", where=where, fixes=[*other, fix])
    resume = Fix("go on with it", command=f"tunesmith runs resume {named}")
    message = f"{path} already holds a run that is not finished ({state}, step {step})"
    raise UsageError("E190", message, where=where, fixes=[resume, *other])


def _named(folder: Path, name: str) -> Path:
    path = folder / name
    where = Where(str(path), field="run.name")
    if not NAME.fullmatch(name):
        fix = "letters, digits, dot, dash and underscore, beginning with a letter or digit"
        raise UsageError("E190", f"{name!r} is no name for a run", where=where, fixes=[fix])
    path.mkdir(exist_ok=True)
    check_empty(path)
    return path


def _dated(folder: Path, slug: str) -> Path:
    words = re.sub(r"[^a-z0-9]+", "-", slug.lower()).strip("-")[:60] or "run"
    stem = f"{time.strftime('%Y-%m-%d')}-{words}"
    number = 1
    while True:
        path = folder / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path
