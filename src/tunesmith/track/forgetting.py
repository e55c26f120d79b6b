"""The report on what a run learned and lost, as it lies in the run's folder, and its figures as words."""

from __future__ import annotations

import math
from typing import Any

from tunesmith.errors import BadInput
from tunesmith.track.files import read_object
from tunesmith.track.run_dir import RunDir

Content = dict[str, Any]
FOLDER = "forgetting"
NEEDED = {"run", "weight", "points", "front", "best", "why", "advice", "warnings"}
LOSSES = ("loss", "bits_per_byte")  # all other measures are shares
STATES = ("weights", "learned, %", "general, %", "summary", "front")
TASKS = ("", "task", "measure", "base", "now", "change, %", "better / worse", "p")
SIDES = {"new": "new task", "general": "general"}
WORDS = {"worse": "worse", "better": "better", "open": "no difference shown"}


def read_forgetting(run: RunDir) -> Content | None:
    """The report of a run; None where there is none that can be read."""
    try:
        found = read_object(run.path / FOLDER / "report.json")
    except BadInput:
        return None
    return found if found.keys() >= NEEDED and found["points"] else None


def last_of(report: Content) -> Content:
    """The final weights, or the newest ones."""
    return next((one for one in report["points"] if one["final"]), report["points"][-1])


def headline(report: Content) -> list[str]:
    """What a reader should know first."""
    last = last_of(report)
    said = [f"{last['name']}: learned {percent(last['learned']['value'])}, general {percent(last['kept']['value'])}"]
    losses = [one for one in last["changes"] if one["measure"] == "loss"]
    if losses:
        told = (f"{one['task']} {perplexity(one['first'])} to {perplexity(one['second'])}" for one in losses)
        said.append(f"perplexity: {', '.join(told)}")
    lost = [one["task"] for one in last["changes"] if one["side"] == "general" and one["verdict"] == "worse"]
    if lost:
        said.append(f"shown to be worse: {', '.join(lost)}")
    said.append(f"to take: {report['best']}, as {report['why']}")
    return said


def state_rows(report: Content) -> list[list[str]]:
    """The cells under STATES, the base first."""
    return [
        [
            one["name"] + (" <" if one["name"] == report["best"] else ""),
            *([""] * 2 if at == 0 else [spread(one["learned"]), spread(one["kept"])]),
            f"{one['summary']['value']:+.3f}" if at else "0",
            "yes" if one["name"] in report["front"] else "",
        ]
        for at, one in enumerate(report["points"])
    ]


def task_rows(report: Content, point: Content) -> list[list[str]]:
    """The cells under TASKS for one state."""
    return [
        [
            WORDS[one["verdict"]],
            f"{one['task']}, {SIDES[one['side']]}",
            one["measure"].replace("_", " "),
            figure(one["first"], one["measure"]),
            figure(one["second"], one["measure"]),
            spread(one["change"]),
            f"{one['better']} / {one['worse']} of {one['change']['n']}",
            f"{one['p_adjusted']:.3f}" if one["p_adjusted"] >= 0.001 else "< 0.001",
        ]
        for one in point["changes"]
    ]


def explained(report: Content) -> str:
    weight = report["weight"]
    return (
        "Learned and general are the means of the changes from the base at the new task and elsewhere, each task "
        "counting the same: of a loss the part of it that is gone (below 0: that came on top), of a share the points "
        f"between. Summary is {1 - weight:g} x learned + {weight:g} x general, as parts of 1. Intervals (95 %) are a "
        "bootstrap over records, the same ones for all weights. On the front are those that no others beat in both."
    )


def spread(score: Content) -> str:
    """In percent, with the interval."""
    value, low, high = (100 * score[end] for end in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def percent(value: float) -> str:
    return f"{100 * value:+.1f} %"


def perplexity(loss: float) -> str:
    return f"{math.exp(min(loss, 700.0)):.3g}"


def figure(value: float, measure: str) -> str:
    """A loss as it is, a share in percent."""
    return f"{value:.3f}" if measure in LOSSES else f"{100 * value:.1f} %"
