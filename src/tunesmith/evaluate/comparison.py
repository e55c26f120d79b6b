"""The report on one model or several: figures, paired differences, regressions first, and what makes them doubtful."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any

from tunesmith.errors import Diagnostic, Fix
from tunesmith.evaluate.contamination import Overlap
from tunesmith.evaluate.metrics import Score, perplexity
from tunesmith.evaluate.paired import Difference, difference, holm, score_of
from tunesmith.evaluate.suite import Measure, Result, TaskRun

EXAMPLES = 20  # lost and gained exercises that a report shows, of each task
VERDICTS = {"worse": 0, "better": 1, "open": 2}


@dataclass(frozen=True, slots=True)
class Summary:
    """One figure of one model; `categories` are of the main measure, `clean` leaves out what training data has."""

    model: str
    task: str
    kind: str
    measure: str
    main: bool
    lower: bool
    score: Score
    categories: dict[str, Score] = field(default_factory=dict)
    clean: Score | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """An exercise that one model got right, or better, and the other not."""

    task: str
    name: str
    category: str
    base: str
    model: str
    prompt: str
    reference: str
    before: str
    after: str
    change: float


@dataclass(frozen=True, slots=True)
class Report:
    """All of it. Differences: what became worse first, then what became better, the largest changes first."""

    suite: str
    models: tuple[str, ...]
    about: dict[str, str]
    summaries: list[Summary]
    differences: list[Difference]
    changes: list[Change]
    overlaps: list[Overlap]
    warnings: list[Diagnostic]

    def to_json(self) -> dict[str, Any]:
        return {
            "suite": self.suite,
            "models": list(self.models),
            "tasks": self.about,
            "scores": [asdict(one) for one in self.summaries],
            "differences": [one.to_json() for one in self.differences],
            "changes": [asdict(one) for one in self.changes],
            "contamination": [one.to_json() for one in self.overlaps],
            "warnings": [one.to_json() for one in self.warnings],
        }


Runs = Mapping[str, Sequence[TaskRun]]  # by model, the first is what the others are compared with


def report_on(suite: str, runs: Runs, overlaps: Sequence[Overlap] = (), warnings: Sequence[Diagnostic] = ()) -> Report:
    """The report on the runs of some models at the same tasks."""
    models = tuple(runs)
    base, others = models[0], models[1:]
    every = {model: {run.task.name: run for run in done} for model, done in runs.items()}
    seen = {one.task: one.names for one in overlaps}
    summaries = [one for model in models for run in runs[model] for one in summarise(model, run, seen)]
    differences: list[Difference] = []
    changes: list[Change] = []
    for model in others:
        compared = [
            one for task, run in every[model].items() for one in differences_of(every[base][task], run, (base, model))
        ]
        differences += adjusted(compared, {task: run.measures[0].name for task, run in every[model].items()})
        for task, run in every[model].items():
            changes += changes_of(every[base][task], run, (base, model))
    return Report(
        suite,
        models,
        {run.task.name: run.task.about for run in runs[base]},
        summaries,
        sorted(differences, key=urgency),
        sorted(changes, key=lambda one: one.change),
        [one for one in overlaps if one.seen or one.checked],
        [*distinct(runs), *contaminated(overlaps), *warnings],
    )


def summarise(model: str, run: TaskRun, seen: Mapping[str, frozenset[str]]) -> list[Summary]:
    found: list[Summary] = []
    task = run.task
    for measure in run.measures:
        main = measure is run.measures[0]
        clean = [one for one in run.results if one.name not in seen.get(task.name, ())]
        part = score_of(clean, measure) if clean and len(clean) < len(run.results) else None
        groups = by_category(run.results) if main else {}
        categories = {name: score_of(part, measure) for name, part in groups.items()} if len(groups) > 1 else {}
        score = score_of(run.results, measure)
        found.append(Summary(model, task.name, task.kind, measure.name, main, measure.lower, score, categories, part))
    for name in (measure.name for measure in run.measures if measure.name.endswith("loss")):
        weights = [one.weights[name] for one in run.results]
        nats = [one.scores[name] * count for one, count in zip(run.results, weights, strict=True)]
        told = name.replace("loss", "perplexity")
        found.append(Summary(model, task.name, task.kind, told, False, True, perplexity(nats, weights)))
    return found


def by_category(results: Sequence[Result]) -> dict[str, list[Result]]:
    named = sorted((one for one in results if one.category), key=lambda one: one.category)
    return {name: list(part) for name, part in groupby(named, key=lambda one: one.category)}


def differences_of(base: TaskRun, run: TaskRun, names: tuple[str, str]) -> list[Difference]:
    """Of all measures, and of the main one by category."""
    first, second = ({one.name: one for one in side.results} for side in (base, run))
    found = [difference(first, second, measure, names) for measure in run.measures]
    groups = by_category(base.results)
    for category in groups if len(groups) > 1 else ():
        found.append(difference(first, second, run.measures[0], names, category))
    return [one for one in found if one is not None]


def adjusted(differences: Sequence[Difference], main: Mapping[str, str]) -> list[Difference]:
    """Each family with p-values that allow for its size: main figures, other figures, categories."""
    found = [replace(one, main=not one.category and one.measure == main[one.task]) for one in differences]
    families: dict[tuple[bool, str], list[int]] = {}
    for at, one in enumerate(found):
        families.setdefault((one.main, "category" if one.category else ""), []).append(at)
    for places in families.values():
        for at, p in zip(places, holm([found[at].p for at in places]), strict=True):
            found[at] = replace(found[at], p_adjusted=p)
    return found


def urgency(one: Difference) -> tuple[object, ...]:
    """Regressions first, main figures before others, the largest changes first."""
    size = one.change.value if one.verdict == "worse" else -one.change.value
    return VERDICTS[one.verdict], not one.main, bool(one.category), size, one.task, one.measure


def changes_of(base: TaskRun, run: TaskRun, names: tuple[str, str]) -> list[Change]:
    """The exercises that changed most in the main measure, lost ones before gained ones; nothing to show of a loss."""
    if run.task.kind == "loss":
        return []
    measure: Measure = run.measures[0]
    before = {one.name: one for one in base.results}
    sign = -1.0 if measure.lower else 1.0
    found = [
        Change(
            one.task,
            one.name,
            one.category,
            *names,
            one.prompt,
            one.reference,
            before[one.name].answer,
            one.answer,
            sign * (one.scores[measure.name] - before[one.name].scores[measure.name]),
        )
        for one in run.results
        if one.name in before
    ]
    ordered = sorted((one for one in found if one.change), key=lambda one: one.change)
    lost, gained = [one for one in ordered if one.change < 0], [one for one in ordered if one.change > 0]
    return [*lost[:EXAMPLES], *gained[::-1][:EXAMPLES]]


def distinct(runs: Runs) -> list[Diagnostic]:
    """The warnings of all tasks, each with the model it is about."""
    return [
        replace(one, message=f"{model}: {one.message}")
        for model, done in runs.items()
        for run in done
        for one in run.warnings
    ]


def contaminated(overlaps: Sequence[Overlap]) -> list[Diagnostic]:
    found: list[Diagnostic] = []
    for one in overlaps:
        if one.seen:
            message = f"{one.task}: {len(one.seen)} of {one.checked} exercises stand in the training data"
            shown = tuple(f"{each.name} ({each.share:.0%} of it) at {each.record}" for each in one.seen[:3])
            fix = Fix("trust the figure without them, or take these records out of the training data")
            found.append(Diagnostic("W450", message, "warning", None, shown, (fix,)))
    return found
