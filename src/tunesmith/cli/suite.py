"""`tunesmith eval --suite`: models at the same tasks, their differences, and the report in every form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from tunesmith.data.config import SourceConfig
    from tunesmith.errors import Diagnostic
    from tunesmith.evaluate.comparison import Report
    from tunesmith.evaluate.contamination import Overlap
    from tunesmith.evaluate.exercise import Exercise
    from tunesmith.evaluate.suite import TaskRun
    from tunesmith.evaluate.tasks import TaskConfig
    from tunesmith.export.opening import Which
    from tunesmith.export.shelf import Shelf
    from tunesmith.rollout.config import Held
    from tunesmith.track.progress import Progress

Suite = Annotated[
    str | None,
    typer.Option(
        "--suite", help="A shipped suite or task (basic), a task file, or harness:NAME,NAME (mmlu, arc_easy)."
    ),
]
RunCode = Annotated[
    bool, typer.Option("--run-code", help="Let tasks run what models write, in a sandbox: read the guide first.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for results of every exercise and the report.")]
TrainData = Annotated[
    list[str] | None, typer.Option("--train-data", help="Training data to look for the exercises in; repeatable.")
]

STYLES = {"worse": "red", "better": "green", "open": "dim"}
SHOWN = 160  # characters of an answer


@dataclass(frozen=True, slots=True)
class SuiteOptions:
    """How a suite is run, and where its results go."""

    which: Which
    limit: int | None
    max_new_tokens: int | None
    batch_size: int
    out: Path | None
    train_data: Sequence[str]
    run_code: bool = False
    held: Held = "packed"


def report_suite(models: list[str], suite: str, how: SuiteOptions, *, examples: int, as_json: bool) -> None:
    """Run, compare, write and print; nothing is loaded before tasks and exercises are checked."""
    from tunesmith.cli.model import tell_sources
    from tunesmith.cli.output import console
    from tunesmith.evaluate.comparison import report_on
    from tunesmith.evaluate.deciding import check_pairwise
    from tunesmith.evaluate.suite import check_code
    from tunesmith.evaluate.tasks import exercises_of, load_suite
    from tunesmith.export.shelf import Shelf
    from tunesmith.track.progress import make_progress

    check_named_once(models)
    loaded = load_suite(suite)
    exercises = {task.name: exercises_of(task, path, how.limit) for task, path in loaded}
    tasks = [changed(task, how) for task, _ in loaded]
    check_pairwise(tasks, models)
    check_code(tasks, allowed=how.run_code)
    check_writes(tasks, how.held)
    shelf = Shelf.of(models, how.which)
    check_differ(shelf)
    tell_sources(shelf.sources, how.which)
    if how.out is not None:
        make_folder(how.out)
    with make_progress(console()) as progress:
        overlaps, doubts = look_for(exercises, shelf, how.train_data, progress)
        labels = labelled(models)
        runs = {
            label: run_model(model, label, shelf, tasks, exercises, how, progress) for model, label in labels.items()
        }
        runs = decided(runs, tasks, how.out, progress)
    found = report_on(Path(suite).stem, runs, overlaps, doubts)
    tell_report(found, labels, runs, how.out, examples=examples, as_json=as_json)


def tell_report(
    found: Report,
    labels: Mapping[str, str],
    runs: Mapping[str, Sequence[TaskRun]],
    out: Path | None,
    *,
    examples: int,
    as_json: bool,
) -> None:
    """Write the report where a folder is named, and print it."""
    from tunesmith.cli.output import answer, console, emit_json, show
    from tunesmith.track.files import finite

    content = found.to_json() | {"given": {label: model for model, label in labels.items()}}
    written = write_report(found, content, runs, out) if out is not None else []
    for one in found.warnings:
        show(one)
    if as_json:
        emit_json(cast("dict[str, Any]", finite(content)))
        return
    for part in suite_view(found, examples):
        answer(part)
    for path in written:
        console().print(f"written: {path}", markup=False, soft_wrap=True)


def check_named_once(models: Sequence[str]) -> None:
    from tunesmith.errors import UsageError, Where

    twice = next((name for name in models if models.count(name) > 1), None)
    if twice is not None:
        message = f"{twice} is named twice; a model is not compared with itself"
        raise UsageError("E455", message, where=Where("command line"), fixes=["name each model once"])


def check_writes(tasks: Sequence[TaskConfig], held: Held) -> None:
    """UsageError E455 where products are chosen, and no task has the model write anything."""
    from tunesmith.errors import UsageError, Where

    if held != "packed" and not any(task.kind in ("generation", "pairwise") for task in tasks):
        message = "--products says how answers are written, and no task of the suite has the model write any"
        raise UsageError("E455", message, where=Where("command line", field="--products"), fixes=["leave it out"])


def check_differ(shelf: Shelf) -> None:
    """UsageError E455 for two names of the same weights."""
    from tunesmith.errors import UsageError, Where

    if (twice := shelf.twice()) is not None:
        message = f"{twice[1]} is {twice[0]} once more, and a model is not compared with itself"
        raise UsageError("E455", message, where=Where("command line"), fixes=[f"leave {twice[1]} out"])


def labelled(models: Sequence[str]) -> dict[str, str]:
    """What each model is called in reports: the last part of its name where that says which it is."""
    short = {model: Path(model).name or model for model in models}
    taken = list(short.values())
    return {model: label if taken.count(label) == 1 else model for model, label in short.items()}


def changed(task: TaskConfig, how: SuiteOptions) -> TaskConfig:
    return task if how.max_new_tokens is None else task.model_copy(update={"max_new_tokens": how.max_new_tokens})


def make_folder(out: Path) -> None:
    from tunesmith.track.files import disk_error

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error


def run_model(
    model: str,
    label: str,
    shelf: Shelf,
    tasks: Sequence[TaskConfig],
    exercises: Mapping[str, Sequence[Exercise]],
    how: SuiteOptions,
    progress: Progress,
) -> list[TaskRun]:
    """One model at all tasks; it is let go afterwards."""
    from tunesmith.evaluate.suite import Working, run_task
    from tunesmith.rollout.engine.engine import check_held

    progress.phase(f"loading {label}")
    opened = shelf.open(model)
    check_held(opened.model, how.held)  # before the tasks in which nothing is written
    working = Working(
        opened.model,
        opened.tokenizer,
        how.batch_size,
        lambda task, done, total: progress.phase(f"{label} at {task}", done, total),
        how.run_code,
        how.held,
    )
    return [run_task(working, task, exercises[task.name]) for task in tasks]


def decided(
    runs: dict[str, list[TaskRun]], tasks: Sequence[TaskConfig], out: Path | None, progress: Progress
) -> dict[str, list[TaskRun]]:
    """The same runs, pairwise tasks with their scores."""
    import tempfile

    from tunesmith.evaluate.deciding import decide

    for at, task in enumerate(tasks):
        if task.kind != "pairwise":
            continue
        with tempfile.TemporaryDirectory() as folder:
            votes = Path(folder if out is None else out, f"votes-{task.name}.jsonl")
            one = {model: done[at] for model, done in runs.items()}
            marked = decide(one, votes, lambda done, total: progress.phase("deciding", done, total))
        runs = {model: [*done[:at], marked[model], *done[at + 1 :]] for model, done in runs.items()}
    return runs


def look_for(
    exercises: Mapping[str, Sequence[Exercise]], shelf: Shelf, named: Sequence[str], progress: Progress
) -> tuple[list[Overlap], list[Diagnostic]]:
    """What training data has of the exercises: the data that is named, else that of the runs among the models."""
    from tunesmith.data.config import SourceConfig
    from tunesmith.errors import Diagnostic, Fix, TunesmithError
    from tunesmith.evaluate.contamination import overlaps, records_in

    if named:
        sources = [SourceConfig(path=path) for path in named]
        progress.phase("looking for exercises in the training data")
        return overlaps(dict(exercises), records_in(sources)), []
    try:
        sources = trained_on(shelf)
        if not sources:
            return [], []
        progress.phase("looking for exercises in the training data")
        return overlaps(dict(exercises), records_in(sources)), []
    except TunesmithError as error:
        message = "the training data of a run cannot be read, so nobody knows whether it holds exercises"
        evidence = (error.diagnostic.message,)
        fixes = (Fix("name it: --train-data FILE"),)
        return [], [Diagnostic("W453", message, "warning", error.diagnostic.where, evidence, fixes)]


def trained_on(shelf: Shelf) -> list[SourceConfig]:
    """The training data of all runs on the shelf."""
    from tunesmith.recipe import load_recipe

    found: list[SourceConfig] = []
    for source in shelf.sources.values():
        if source.run is not None:
            found += [one for one in load_recipe(source.run.config_file, (), {}).recipe.data.train if one not in found]
    return found


def write_report(
    report: Report, content: Mapping[str, Any], runs: Mapping[str, Sequence[TaskRun]], out: Path
) -> list[Path]:
    """Results of every exercise, a file for each model, and the report as JSON, Markdown and a page."""
    from tunesmith.evaluate.page import page
    from tunesmith.evaluate.told import markdown
    from tunesmith.track.files import replace_text, to_json

    texts: dict[str, str] = {}
    for at, (model, done) in enumerate(runs.items()):
        rows = (to_json({"model": model, **asdict(one)}) for run in done for one in run.results)
        texts[f"results-{at + 1}-{file_name(model)}.jsonl"] = "".join(f"{row}\n" for row in rows)
    texts["report.json"] = to_json(dict(content), indent=2) + "\n"
    texts["report.md"] = markdown(report)
    texts["report.html"] = page(report)
    for name, text in texts.items():
        replace_text(out / name, text.encode("utf-8", "replace").decode("utf-8"))
    return [out / name for name in texts]


def file_name(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", Path(model).name).strip("-") or "model"


def suite_view(report: Report, examples: int) -> list[RenderableType]:
    """Figures of all models beside each other, then differences, regressions first, and lost exercises."""
    from rich.text import Text

    from tunesmith.evaluate.told import headline

    parts: list[RenderableType] = [scores_view(report)]
    if report.differences:
        parts += [Text(line) for line in ("", *headline(report), "")]
        parts.append(differences_view(report))
    lost = [one for one in report.changes if one.change < 0][:examples]
    if lost:
        table = plain_table(("lost", "left"), ("wanted", "left"), ("before", "left"), ("after", "left"))
        for one in lost:
            texts = (f"{one.task}: {one.prompt[-SHOWN:]}", one.reference, one.before, one.after)
            table.add_row(*(Text(" ".join(text[:SHOWN].split())) for text in texts))
        parts += [Text(""), table]
    return parts


def plain_table(*titles: tuple[str, str]) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for title, side in titles:
        table.add_column(title, justify="right" if side == "right" else "left", overflow="fold")
    return table


def scores_view(report: Report) -> RenderableType:
    """A row for each figure, a column for each model."""
    from rich.text import Text

    from tunesmith.evaluate.told import interval, named, number

    table = plain_table(
        ("task", "left"), ("measure", "left"), *((model, "left") for model in report.models), ("n", "right")
    )
    rows = dict.fromkeys((one.task, one.measure) for one in report.summaries)
    by_place = {(one.task, one.measure, one.model): one for one in report.summaries}
    for task, measure in rows:
        found = [by_place[task, measure, model] for model in report.models]
        cells = []
        for one in found:
            clean = "" if one.clean is None else f"; {number(one.clean.value, measure)} without seen ones"
            cells.append(f"{number(one.score.value, measure)} ({interval(one.score, measure)}{clean})")
        style = "bold" if found[0].main else ""
        table.add_row(
            Text(task), Text(named(measure), style), *(Text(cell, style) for cell in cells), f"{found[0].score.n}"
        )
    return table


def differences_view(report: Report) -> RenderableType:
    """Main figures, and whatever else became better or worse; who is compared only where there are several."""
    from rich.text import Text

    from tunesmith.evaluate.told import interval, named, number, probability

    several = [("model", "left")] if len(report.models) > 2 else []
    columns = [("change", "right"), ("95 % interval", "right"), ("better/worse", "right"), ("p", "right")]
    table = plain_table(("", "left"), ("task and measure", "left"), *several, *columns)
    for one in report.differences:
        if not one.main and one.verdict == "open":
            continue
        task = f"{one.task}, {one.category}" if one.category else one.task
        cells = (
            number(one.change.value, one.measure, signed=True),
            interval(one.change, one.measure, signed=True),
            f"{one.better}/{one.worse}",
            probability(one),
        )
        mark = Text(one.verdict, STYLES[one.verdict])
        table.add_row(mark, Text(f"{task}: {named(one.measure)}"), *([Text(one.model)] if several else []), *cells)
    return table
