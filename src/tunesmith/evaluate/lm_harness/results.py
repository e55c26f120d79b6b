"""What the harness made of a model becomes results of exercises, so that models are compared one by one."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.errors import Diagnostic, Fix
from tunesmith.evaluate.exercise import Exercise
from tunesmith.evaluate.paired import score_of
from tunesmith.evaluate.suite import Measure, Result, TaskRun
from tunesmith.evaluate.tasks import TaskConfig, TaskKind

KINDS: dict[str, TaskKind] = {
    "multiple_choice": "choice",
    "loglikelihood": "choice",
    "loglikelihood_rolling": "loss",
    "generate_until": "generation",
}
ROLLING = {"word_perplexity": "word_loss", "byte_perplexity": "byte_loss", "bits_per_byte": "bits_per_byte"}
HUNDREDS = ("bleu", "rouge", "chrf", "ter")  # told over 100
SAME = 1e-9  # how near our figure of a measure must be to the harness's


@dataclass(frozen=True, slots=True)
class Column:
    """One measure of a task, by exercise; the harness tells it times `scale`."""

    measure: Measure
    values: dict[str, float]
    weights: dict[str, float]
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Part:
    """One task of the harness: its exercises and what is measured of them; `left_out` says of what it is not."""

    name: str
    kind: TaskKind
    rows: dict[str, dict[str, Any]]
    columns: list[Column]
    left_out: list[str]


def to_runs(found: Mapping[str, Any], groups: Mapping[str, Sequence[str]], weighted: frozenset[str]) -> list[TaskRun]:
    """A run for each task; those of a group whose figures are over all its exercises are one, its tasks categories."""
    runs: list[TaskRun] = []
    for group, names in groups.items():
        parts = [read_part(name, found) for name in names]
        shapes = {(part.kind, tuple(column.measure for column in part.columns)) for part in parts}
        if group in weighted and len(parts) > 1 and len(shapes) == 1:
            runs.append(run_of(group, parts))
        else:
            runs += [run_of(part.name, [part]) for part in parts]
    return runs


def read_part(name: str, found: Mapping[str, Any]) -> Part:
    samples: list[dict[str, Any]] = found["samples"][name]
    kind = KINDS[found["configs"][name]["output_type"]]
    better = found["higher_is_better"].get(name, {})
    filters = list(dict.fromkeys(one["filter"] for one in samples))
    rows = {exercise_name(name, one["doc_id"]): one for one in reversed(samples)}
    columns, left_out = list[Column](), list[str]()
    for metric in dict.fromkeys(metric for one in samples for metric in one["metrics"]):
        for way in filters:
            values = {exercise_name(name, one["doc_id"]): one.get(metric) for one in samples if one["filter"] == way}
            label = metric if len(filters) == 1 else f"{metric}_{way}"
            told = found["results"][name].get(f"{metric},{way}")
            column = column_of(label, metric, values, lower=better.get(metric) is False)
            if column is None or not agrees(column, told, name):
                left_out.append(label if not isinstance(told, int | float) else f"{label} ({told:.4g})")
            else:
                columns.append(column)
    columns.sort(key=lambda column: kind == "loss" and column.measure.name != "bits_per_byte")
    return Part(name, kind, dict(reversed(rows.items())), columns, left_out)


def exercise_name(task: str, number: int) -> str:
    return f"{task}-{number + 1}"


def column_of(label: str, metric: str, values: Mapping[str, Any], *, lower: bool) -> Column | None:
    """The measure of these values, each with its weight; None for figures that only all exercises together have."""
    if metric in ROLLING and all(is_pair(value) for value in values.values()):
        scale = math.log(2) if metric == "bits_per_byte" else 1.0
        losses = {name: -value[0] / value[1] / scale for name, value in values.items()}
        weights = {name: float(value[1]) for name, value in values.items()}
        return Column(Measure(label.replace(metric, ROLLING[metric]), lower=True), losses, weights)
    if all(isinstance(value, list) and value and all(map(is_number, value)) for value in values.values()):
        means = {name: sum(value) / len(value) for name, value in values.items()}
        return Column(Measure(label, lower=lower), means, {name: float(len(value)) for name, value in values.items()})
    if not all(is_number(value) for value in values.values()):
        return None
    numbers = {name: float(value) for name, value in values.items()}
    if metric == "perplexity":  # the values are log-probabilities
        losses = {name: -value for name, value in numbers.items()}
        return Column(Measure(label.replace(metric, "loss"), lower=True), losses, dict.fromkeys(losses, 1.0))
    scale = 100.0 if metric.startswith(HUNDREDS) and any(abs(value) > 1 for value in numbers.values()) else 1.0
    numbers = {name: value / scale for name, value in numbers.items()}
    if any(abs(value) > 1 for value in numbers.values()):
        return None
    binary = all(value in (0.0, 1.0) for value in numbers.values()) and not lower
    return Column(Measure(label, binary, lower), numbers, {}, scale)


def is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.number | np.bool_)


def is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(is_number, value))


def agrees(column: Column, told: Any, task: str) -> bool:
    """Whether the figure over all exercises is the one that the harness tells, so that ours may stand for it."""
    if not is_number(told):
        return False
    results = [result_of(task, name, {}, [column]) for name in column.values]
    ours = score_of(results, column.measure).value * column.scale
    if column.measure.name.endswith("loss"):
        ours = math.exp(min(ours, 700.0))
    return math.isclose(ours, float(told), rel_tol=SAME, abs_tol=SAME)


def run_of(name: str, parts: Sequence[Part]) -> TaskRun:
    task = TaskConfig(
        name=re.sub(r"[^\w.-]", "-", name), kind=parts[0].kind, about=f"{name} of lm-evaluation-harness", chat="never"
    )
    several = len(parts) > 1
    results = [
        result_of(task.name, one, row, part.columns, part.name if several else "", part.kind)
        for part in parts
        for one, row in part.rows.items()
    ]
    warnings = [not_compared(name, part.left_out) for part in parts if part.left_out][:1]
    return TaskRun(task, tuple(column.measure for column in parts[0].columns), results, Counter(), warnings)


def result_of(
    task: str, name: str, row: Mapping[str, Any], columns: Sequence[Column], category: str = "", kind: str = ""
) -> Result:
    prompt, answer, reference, detail = told_of(row, kind) if row else ("", "", "", {})
    return Result(
        task,
        name,
        category,
        prompt,
        answer,
        reference,
        {column.measure.name: column.values[name] for column in columns},
        {column.measure.name: column.weights[name] for column in columns if column.weights},
        detail=detail,
    )


def told_of(row: Mapping[str, Any], kind: str) -> tuple[str, str, str, dict[str, Any]]:
    """What was asked, answered and wanted, and the figures behind it."""
    asked, target = row["arguments"], row["target"]
    if kind == "loss":
        return "", "", str(target), {"logprob": first(row["resps"][0])}
    if kind == "generation":
        return str(asked[0][0]), str(first(row["resps"][0])), str(target), {}
    answers = [first(one) for one in row["resps"]]
    logprobs = [float(one[0]) for one in answers]
    texts = [str(one[1]) for one in asked]
    detail = {"choices": texts, "logprobs": logprobs, "greedy": [bool(one[1]) for one in answers]}
    place = target if isinstance(target, int) and 0 <= target < len(texts) else None
    wanted = texts[place] if place is not None else str(target)
    return str(asked[0][0]), texts[logprobs.index(max(logprobs))], wanted, detail


def first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def exercises_of(runs: Sequence[TaskRun], found: Mapping[str, Any]) -> dict[str, list[Exercise]]:
    """What was asked, by task, to be looked for in training data."""
    samples = found["samples"]
    records = {exercise_name(task, one["doc_id"]): one["doc"] for task in samples for one in samples[task]}
    return {
        run.task.name: [
            Exercise(one.name, one.prompt, (one.reference,), category=one.category, fields=dict(records[one.name]))
            for one in run.results
        ]
        for run in runs
    }


def not_compared(task: str, measures: Sequence[str]) -> Diagnostic:
    message = f"{task}: the harness has figures that no single exercise has, which are not compared: "
    return Diagnostic("W454", message + ", ".join(measures), "warning", fixes=(Fix("--out FOLDER writes them"),))
