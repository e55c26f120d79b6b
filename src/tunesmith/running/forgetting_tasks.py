"""What a run is measured by for its report on forgetting: its own held-out data, other files, tasks of suites."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from tunesmith.data.config import SourceConfig
from tunesmith.data.prepared import Prepared, prepare
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import Diagnostic, Fix, UsageError, Where
from tunesmith.evaluate.changes import Sheet, Side
from tunesmith.evaluate.choices import check_numbers
from tunesmith.evaluate.exercise import Exercise
from tunesmith.evaluate.harness import kind_held, loss_sums, name_tasks
from tunesmith.evaluate.pairs import likelihoods
from tunesmith.evaluate.suite import Measure, Working, run_task
from tunesmith.evaluate.tasks import TaskConfig, exercises_of, load_suite, shipped_suites
from tunesmith.recipe import Recipe
from tunesmith.types import Example, Kind, Task

LIMIT = 100  # records or exercises of each task
SUITE = "choices"  # what is measured elsewhere besides general data: nothing is generated
WEIGHT = 0.5
COMPARED: tuple[Kind, ...] = ("pair", "ranking")
LOSS = Measure("loss", lower=True)
FIRST = Measure("accuracy", binary=True)
Told = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What the report is to hold. `new` and `general` name files of records, task files and shipped suites.

    With `new` empty the run's held-out data counts, with `general` None its general data and the suite SUITE; an empty
    `general` is the run's data alone. `base` says where the base is now.
    """

    new: tuple[str, ...] = ()
    general: tuple[str, ...] | None = None
    weight: float = WEIGHT
    limit: int = LIMIT
    base: Path | None = None
    batch_size: int = 32


class Measured(Protocol):
    """A task of one side, told apart from others by `key`: a hash of all that decides its results but the model."""

    @property
    def name(self) -> str: ...

    @property
    def side(self) -> Side: ...

    @property
    def key(self) -> str: ...

    @property
    def cut(self) -> bool:
        """Whether the limit leaves something out."""
        ...

    def measure(self, model: nn.Module, tokenizer: Tokenizer, told: Told) -> Sheet: ...


@dataclass(frozen=True, slots=True)
class DataTask:
    """The loss of records, or of pairs and rankings how often the best answer is the likeliest."""

    name: str
    side: Side
    key: str
    cut: bool
    kind: Kind
    examples: tuple[Example, ...]

    def measure(self, model: nn.Module, tokenizer: Tokenizer, told: Told) -> Sheet:
        told(self.name, 0, len(self.examples))
        if self.kind in COMPARED:
            found = likelihoods(model, self.examples, on_progress=lambda done, total: told(self.name, done, total))
            hits = [best_first(sums) for sums in found.by_record(found.sums)]
            names = tuple(str(at + 1) for at in range(len(hits)))
            return Sheet(self.name, self.side, FIRST, names, tuple(hits), (1.0,) * len(hits))
        nll, weights = loss_sums(model, self.examples)
        check_numbers(torch.tensor(nll))
        totals = by_record(self.examples, nll, weights)
        names = tuple(str(at + 1) for at in range(len(totals)))
        values = tuple(nll / weight for nll, weight in totals)
        return Sheet(self.name, self.side, LOSS, names, values, tuple(weight for _, weight in totals))


def best_first(sums: Sequence[float]) -> float:
    """1 where the first answer is the likeliest, one half where another is as likely."""
    best, others = sums[0], max(sums[1:])
    return 0.5 if best == others else float(best > others)


def by_record(examples: Sequence[Example], nll: Sequence[float], weights: Sequence[float]) -> list[tuple[float, float]]:
    """Sums over the parts of each record; one without a scored token is left out."""
    totals: dict[tuple[str, int], tuple[float, float]] = {}
    for example, top, bottom in zip(examples, nll, weights, strict=True):
        before = totals.get((example.file, example.line), (0.0, 0.0))
        totals[example.file, example.line] = before[0] + top, before[1] + bottom
    return [one for one in totals.values() if one[1] > 0]


@dataclass(frozen=True, slots=True)
class SuiteTask:
    """A task of a suite, by its main figure."""

    task: TaskConfig
    exercises: tuple[Exercise, ...]
    side: Side
    cut: bool
    batch_size: int

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def key(self) -> str:
        asked = [asdict(replace(one, where=Where())) for one in self.exercises]
        return hashed(["suite", self.task.model_dump(mode="json"), asked])

    def measure(self, model: nn.Module, tokenizer: Tokenizer, told: Told) -> Sheet:
        done = run_task(Working(model, tokenizer, self.batch_size, told), self.task, self.exercises)
        measure = done.measures[0]
        return Sheet(
            self.name,
            self.side,
            measure,
            tuple(one.name for one in done.results),
            tuple(one.scores[measure.name] for one in done.results),
            tuple(one.weights.get(measure.name, 1.0) for one in done.results),
        )


def hashed(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def tasks_of(recipe: Recipe, tokenizer: Tokenizer, wish: Wish) -> tuple[list[Measured], list[Diagnostic]]:
    """All that is measured, each under a name of its own, and what a reader should know of it.

    UsageError E476 when nothing says what the new task is worth, E478 for a task that two models must do together.
    """
    warnings: list[Diagnostic] = []
    if wish.new:
        new = list(named_tasks(wish.new, "new", recipe, tokenizer, wish))
    else:
        new = list(own_tasks(recipe, tokenizer, wish, warnings))
    general: list[Measured] = []
    kept = recipe.data.general.eval
    if kept:
        prepared = prepare(kept, recipe.data, tokenizer, None, Task())
        general.append(data_task("general data", "general", prepared, "sequence", wish.limit))
    asked = (SUITE,) if wish.general is None else wish.general
    general += named_tasks(asked, "general", recipe, tokenizer, wish)
    if not general:
        raise UsageError(
            "E479",
            "nothing says what the model could do before",
            where=Where("command line", field="--general"),
            fixes=[f"--general {SUITE}", "--general FILE of answers or texts that should stay likely"],
        )
    check_names([*new, *general])
    return [*new, *general], warnings


def check_names(tasks: Sequence[Measured]) -> None:
    """UsageError E478 for one task on both sides, or twice on one."""
    names = [task.name for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        message = f"the task {twice} is asked for twice"
        fixes = [f"--general {SUITE} and --suite FILE with other tasks", "name each task once"]
        raise UsageError("E478", message, where=Where("command line"), fixes=fixes)


def own_tasks(recipe: Recipe, tokenizer: Tokenizer, wish: Wish, warnings: list[Diagnostic]) -> Iterator[Measured]:
    """The run's held-out data, else the data of its evaluation, else what it was trained on, which W457 tells."""
    kind = recipe.task.kind
    if kind not in ("sequence", *COMPARED) and (recipe.data.eval or not recipe.evaluate.data):
        raise no_figure(f"records of kind {kind} have no figure here")
    if recipe.data.eval:
        prepared = prepare(recipe.data.eval, recipe.data, tokenizer, None, recipe.task)
        yield data_task("held out", "new", prepared, kind, wish.limit)
    elif recipe.evaluate.data:
        yield from source_tasks(recipe.evaluate.data, "new", recipe, tokenizer, wish)
    elif recipe.data.train:
        message = "the new task is measured on records that were trained: none are held out"
        fixes = (Fix("name some: --data FILE, or data.eval=FILE in the recipe"),)
        warnings.append(Diagnostic("W457", message, "warning", Where(field="data.eval"), fixes=fixes))
        prepared = prepare(recipe.data.train, recipe.data, tokenizer, None, recipe.task)
        yield data_task("training data", "new", prepared, kind, wish.limit)
    else:
        raise no_figure("the run names no records of its own")


def no_figure(why: str) -> UsageError:
    return UsageError(
        "E476",
        f"nothing says what the new task is worth: {why}",
        where=Where("command line"),
        fixes=["--suite FILE: a task of the kind that was learned", "--data FILE: answers, pairs or rankings"],
    )


def named_tasks(
    names: Sequence[str], side: Side, recipe: Recipe, tokenizer: Tokenizer, wish: Wish
) -> Iterator[Measured]:
    """Task files and shipped suites by name, anything else as data. UsageError E450 for a suite that is not there."""
    for name in names:
        if name in shipped_suites() or name.endswith((".yaml", ".yml")):
            yield from suite_tasks(name, side, wish)
        elif Path(name).expanduser().exists() or any(sign in name for sign in ":*?["):
            yield from source_tasks((SourceConfig(path=name),), side, recipe, tokenizer, wish)
        else:
            load_suite(name)


def suite_tasks(name: str, side: Side, wish: Wish) -> Iterator[SuiteTask]:
    for task, path in load_suite(name):
        if task.kind == "pairwise":
            raise UsageError(
                "E478",
                f"{task.name} compares the answers of two models, and the report follows one",
                where=Where(str(path)),
                fixes=["leave it out of the suite", "tunesmith eval BASE RUN --suite FILE"],
            )
        found = tuple(exercises_of(task, path, wish.limit + 1))  # one more tells whether something is left out
        yield SuiteTask(task, found[: wish.limit], side, len(found) > wish.limit, wish.batch_size)


def source_tasks(
    sources: Sequence[SourceConfig], side: Side, recipe: Recipe, tokenizer: Tokenizer, wish: Wish
) -> Iterator[DataTask]:
    """Every source is a task of its own: the loss of its answers or texts, or the accuracy of its pairs or rankings."""
    for name, source in name_tasks(sources):
        kind = kind_held(source)
        settings = recipe.data.model_copy(update={"limit": recipe.evaluate.limit if side == "new" else None})
        yield data_task(name, side, prepare([source], settings, tokenizer, None, Task(kind)), kind, wish.limit)


def data_task(name: str, side: Side, prepared: Prepared, kind: Kind, limit: int) -> DataTask:
    """At most `limit` examples, taken at even distances."""
    places = np.linspace(0, len(prepared), min(limit, len(prepared)), endpoint=False).astype(int).tolist()
    key = hashed(["data", prepared.key, kind, places])
    return DataTask(name, side, key, len(places) < len(prepared), kind, tuple(prepared[place] for place in places))
