"""The result of a benchmark: medians, ratios, losses, versions and machine, as JSON."""

import datetime
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from common import environments, machine
from common.process import environment
from common.sides import Side

SHOWN = ("sft", "preference")  # benchmarks whose results have this form
RESULTS = Path(__file__).parents[1] / "results"
OURS = "tunesmith"
PACKAGES = (
    *("torch", "transformers", "peft", "trl", "llamafactory", "unsloth", "unsloth_zoo", "torchtune", "torchao"),
    *("accelerate", "datasets", "tokenizers", "numpy"),
)
# What of a result's `work` makes it the same work as another's, and what it was before it was written down.
SAME = {
    "method": "sft",
    "model": "",
    "tuning": "lora",
    "work": "short",
    "data": "",
    "dtype": "bfloat16",
    "epochs": 1,
    "threads": 2,
}


def summarise(benchmark: str, sides: list[Side], figures: tuple[str, ...], work: dict, notes: dict) -> dict:
    """Of the sides that ran; a figure that a run has not is left out of its medians."""
    measured = [side for side in sides if side.runs]
    medians = {side.name: medians_of(side.runs, figures) for side in measured}
    losses = [run["losses"] for side in measured for run in side.runs]
    return {
        "benchmark": benchmark,
        **facts(work),
        **notes,
        "sides": {
            side.name: {
                "settings": side.settings,
                "environment": side.environment,
                "versions": environments.versions(side.python, PACKAGES),
                "median": medians[side.name],
                "runs": side.runs,
            }
            for side in measured
        },
        "ratios": ratios(medians),
        "loss": {
            "first": {side.name: side.runs[0]["losses"][0] for side in measured},
            "last": {side.name: side.runs[0]["losses"][-1] for side in measured},
            "largest_difference": max(max(step) - min(step) for step in zip(*losses, strict=True)),
        },
    }


def facts(work: dict) -> dict:
    """When, on what and under which variables the work was measured."""
    return {
        "schema": 2,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": machine.commit(RESULTS.parents[1]),
        "machine": machine.describe(),
        "work": work,
        "environment": environment(work["threads"]),
    }


def medians_of(runs: list[dict], figures: tuple[str, ...]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in figures if all(key in run for run in runs)}


def ratios(medians: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Ours divided by each other row, figure by figure."""
    ours = medians.get(OURS, {})
    return {
        name: {key: ours[key] / value for key, value in other.items() if key in ours}
        for name, other in medians.items()
        if ours and name != OURS
    }


def identity(report: dict) -> tuple:
    """What two results have in common when their ratios can be compared."""
    work = report["work"]
    return (report["benchmark"], *(work.get(key) or missing for key, missing in SAME.items()))


def save(report: dict, folder: Path, name: str, show: Callable[[dict], None] | None) -> None:
    """Write the result; print it as a table with `show`, else as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    work = report["work"]
    ending = "" if work["dtype"] == "bfloat16" else f"-{work['dtype']}"
    path = folder / f"{name}-{work['threads']}-threads-{report['date'][:10]}{ending}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if show is None:
        print(json.dumps(report))
    else:
        show(report)
    print(f"written to {os.path.relpath(path)}", file=sys.stderr)
