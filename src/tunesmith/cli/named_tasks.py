"""`tunesmith eval --suite harness:...`: models at the tasks that lm-evaluation-harness has names for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tunesmith.cli.model import check_words
from tunesmith.cli.suite import (
    SuiteOptions,
    check_differ,
    check_named_once,
    file_name,
    labelled,
    look_for,
    make_folder,
    tell_report,
)

if TYPE_CHECKING:
    from tunesmith.evaluate.suite import TaskRun
    from tunesmith.export.opening import Dtype
    from tunesmith.export.shelf import Shelf
    from tunesmith.track.progress import Progress

PREFIX = "harness:"

TasksFrom = Annotated[
    Path | None, typer.Option("--tasks-from", help="With harness: a folder of task files, or of data for named tasks.")
]
Shots = Annotated[int | None, typer.Option("--shots", min=0, help="With harness: solved examples before a question.")]
Chat = Annotated[bool, typer.Option("--chat", help="With harness: ask by the model's chat template.")]
DTYPES = ("auto", "float32", "bfloat16")
InType = Annotated[
    str, typer.Option("--dtype", help="With harness: weights and figures as auto (stored), float32 or bfloat16.")
]


@dataclass(frozen=True, slots=True)
class NamedTasks:
    """What is asked of the harness beside what every suite can be told."""

    folder: Path | None
    shots: int | None
    chat: bool
    dtype: Dtype

    @classmethod
    def of(cls, folder: Path | None, shots: int | None, chat: bool, dtype: str) -> NamedTasks:
        return cls(folder, shots, chat, cast("Dtype", check_words([dtype], DTYPES, "--dtype")[0]))

    @property
    def given(self) -> dict[str, object]:
        """The options that were given, None for others."""
        dtype = None if self.dtype == "auto" else self.dtype
        return {"--tasks-from": self.folder, "--shots": self.shots, "--chat": self.chat or None, "--dtype": dtype}


def is_named(suite: str | None) -> bool:
    return suite is not None and suite.startswith(PREFIX)


def report_named(
    models: list[str], suite: str, how: SuiteOptions, named: NamedTasks, *, examples: int, as_json: bool
) -> None:
    """Run, compare, write and print; tasks and their data are loaded before any model."""
    from tunesmith.cli.model import tell_sources
    from tunesmith.cli.output import console
    from tunesmith.evaluate.comparison import report_on
    from tunesmith.evaluate.lm_harness.opening import open_backend
    from tunesmith.evaluate.lm_harness.results import exercises_of, to_runs
    from tunesmith.export.shelf import Shelf
    from tunesmith.track.progress import make_progress

    check_named_once(models)
    names = names_in(suite)
    backend = open_backend()
    shelf = Shelf.of(models, how.which, named.dtype)
    check_differ(shelf)
    tell_sources(shelf.sources, how.which)
    if how.out is not None:
        make_folder(how.out)
    runs: dict[str, list[TaskRun]] = {}
    found: dict[str, dict[str, Any]] = {}
    labels = labelled(models)
    with make_progress(console()) as progress:
        progress.phase("loading tasks")
        asked = (names, named.folder, how.limit, named.shots, named.chat, how.run_code, how.max_new_tokens)
        loaded = backend.load(backend.Asked(*asked))
        for model, label in labels.items():
            found[label] = ask(backend, loaded, model, label, shelf, how, progress)
            runs[label] = to_runs(found[label], loaded.groups, loaded.weighted)
        base = next(iter(labels.values()))
        overlaps, doubts = look_for(exercises_of(runs[base], found[base]), shelf, how.train_data, progress)
    written = write_figures(found, how.out) if how.out is not None else []
    report = report_on(suite.removeprefix(PREFIX), runs, overlaps, doubts)
    tell_report(report, labels, runs, how.out, examples=examples, as_json=as_json)
    for path in written if not as_json else ():
        console().print(f"written: {path}", markup=False, soft_wrap=True)


def names_in(suite: str) -> tuple[str, ...]:
    """UsageError E466 when no task is named."""
    from tunesmith.errors import UsageError, Where

    names = tuple(dict.fromkeys(name for name in suite.removeprefix(PREFIX).split(",") if name))
    if not names:
        fixes = ["--suite harness:arc_easy,hellaswag"]
        raise UsageError("E466", "no task of the harness is named", where=Where(field="--suite"), fixes=fixes)
    return names


def ask(
    backend: Any, loaded: Any, model: str, label: str, shelf: Shelf, how: SuiteOptions, progress: Progress
) -> dict[str, Any]:
    """What the harness finds of one model; it is let go afterwards."""
    from tunesmith.evaluate.lm_harness.respondent import Respondent

    progress.phase(f"loading {label}")
    opened = shelf.open(model)
    respondent = Respondent(opened.model, opened.tokenizer, how.batch_size, how.held)
    return backend.run(loaded, respondent, lambda what, done, total: progress.phase(f"{label}, {what}", done, total))


def write_figures(found: Mapping[str, Mapping[str, Any]], out: Path) -> list[Path]:
    """What the harness itself says of each model, in its own words."""
    from tunesmith.track.files import replace_text, to_json

    kept = ("results", "versions", "n-shot", "n-samples", "higher_is_better")
    written: list[Path] = []
    for at, (model, one) in enumerate(found.items()):
        written.append(out / f"harness-{at + 1}-{file_name(model)}.json")
        replace_text(written[-1], to_json({key: one[key] for key in kept if key in one}, indent=2) + "\n")
    return written
