"""What `tunesmith runs` says about a run, as plain data: the same for people and for `--json`."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from tunesmith.configuring.reader import read_yaml
from tunesmith.errors import BadInput
from tunesmith.regular import open_regular
from tunesmith.track.forgetting import read_forgetting
from tunesmith.track.health import signs
from tunesmith.track.index import RunSummary, summarise
from tunesmith.track.layers import layer_courses
from tunesmith.track.outcome import compare_with_plan, outcome
from tunesmith.track.preferences import FIGURES, LEARNED, courses, rounds, worries
from tunesmith.track.reader import Row, read_lines, read_metrics
from tunesmith.track.run_dir import RunDir
from tunesmith.track.status import ACTIVE

LAST_BYTES = 64_000  # of a log, where its last lines are looked for


def report_of(run: RunDir) -> dict[str, Any]:
    """Everything that `show` prints, as plain data."""
    summary, about, plan = summarise(run), {}, {}
    try:
        about = run.read_run()
        plan = run.read_plan() if run.plan_file.exists() else {}
    except BadInput as error:
        summary = replace(summary, state="damaged", reason=error.diagnostic.message)
    events = list(read_lines(run.events_file))
    actual = outcome(run)
    rows = read_metrics(run.metrics_file)
    found = courses(rows)
    return {
        "run": summary.to_json(),
        "about": about,
        "outcome": actual.to_json(),
        "plan": [line.to_json() for line in compare_with_plan(plan, actual)],
        "preferences": [course.to_json() for course in found],
        "worries": worries(found),
        "signs": [sign.to_json() for sign in signs(rows)],
        "layers": [layer.to_json() for layer in layer_courses(rows)],
        "accuracy": [course.to_json() for course in courses(rows, LEARNED)],
        "rounds": rounds(rows),
        "evaluations": [_without_place(row) for row in events if row.get("event") == "evaluation"],
        "forgetting": read_forgetting(run),
        "warnings": [row for row in events if row.get("event") in ("warning", "sink", "bad_step")],
        "checkpoints": _checkpoints(run),
        "profile": str(run.profile_text) if run.profile_text.exists() else None,
        "log": _last_lines(run) if summary.state in ("lost", "failed") else [],
        "next": next_commands(summary, about),
    }


def comparison(left: RunDir, right: RunDir) -> dict[str, Any]:
    """The settings in which two runs differ and both outcomes; what one lacks is None.

    Losses of different objectives have no scale in common: `same_loss` is False.
    """
    ours, theirs = _settings(left), _settings(right)
    missing = object()
    keys = [key for key in {**ours, **theirs} if ours.get(key, missing) != theirs.get(key, missing)]
    before, after = outcome(left).to_json(), outcome(right).to_json()
    figures = [{course.name: course for course in courses(read_metrics(run.metrics_file))} for run in (left, right)]
    return {
        "same_loss": _objectives(ours) == _objectives(theirs),
        "preferences": [
            {
                "name": name,
                "values": [found[name].last if name in found else None for found in figures],
                "held_out": [found[name].held_out if name in found else None for found in figures],
            }
            for name in FIGURES
            if any(name in found for found in figures)
        ],
        "runs": [left.id, right.id],
        "changed": [{"key": key, "values": [ours.get(key), theirs.get(key)]} for key in keys],
        "outcome": [{"name": name, "values": [before[name], after[name]]} for name in before],
    }


def _settings(run: RunDir) -> dict[str, Any]:
    """The leaves of `config.yaml` by dotted key, without the name of the run itself."""
    found: dict[str, Any] = {}
    _flatten(read_yaml(run.read_config(), str(run.config_file)).value, "", found)
    found.pop("run.name", None)
    return found


def _objectives(settings: dict[str, Any]) -> list[str]:
    """The names of all objectives of a run."""
    also = settings.get("also") or []
    return [str(settings.get("objective.name", "sft")), *(str(each.get("name")) for each in also)]


def _flatten(value: Any, prefix: str, found: dict[str, Any]) -> None:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            _flatten(part, f"{prefix}.{key}" if prefix else str(key), found)
    else:
        found[prefix] = value


def _without_place(row: Row) -> Row:
    return {key: value for key, value in row.items() if key not in ("event", "wall", "attempt")}


def _checkpoints(run: RunDir) -> list[int]:
    names = (path.parent.name.removeprefix("step-") for path in run.checkpoints.glob("step-*/manifest.json"))
    return sorted(int(name) for name in names if name.isdigit())


def _last_lines(run: RunDir, count: int = 12) -> list[str]:
    try:
        with open_regular(run.log_file) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
            return file.read(LAST_BYTES).decode("utf-8", errors="replace").splitlines()[-count:]
    except OSError:
        return []


def next_commands(summary: RunSummary, about: dict[str, Any]) -> list[str]:
    """What to do with a run in its state; `about` is its `run.json`, which says what the model gives."""
    path = summary.path
    if summary.state in ACTIVE:
        return [f"tunesmith runs tail {path} --follow", f"tunesmith runs stop {path}"]
    if summary.state in ("stopped", "preempted", "lost", "failed"):
        return [f"tunesmith runs resume {path}"]
    if summary.state != "finished":
        return []
    if about.get("task", {}).get("reads") == "values":
        use = [f"tunesmith eval {path} --data FILE", f"tunesmith score {path} --data FILE"]
    else:
        use = [f"tunesmith chat {path}"]
    return [*use, f"tunesmith merge {path} OUT"]
