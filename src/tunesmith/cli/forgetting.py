"""`tunesmith eval --forgetting`: what a run learned beside what it lost, and which guard to turn on."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from tunesmith.errors import Diagnostic, Fix, Where
    from tunesmith.recipe import Recipe
    from tunesmith.running.forgetting_tasks import Wish
    from tunesmith.track.progress import Progress
    from tunesmith.track.run_dir import RunDir

Forgetting = Annotated[
    bool, typer.Option("--forgetting", help="Of a run: what it learned beside what it lost, at every checkpoint.")
]
General = Annotated[
    list[str] | None,
    typer.Option("--general", help="With --forgetting: a suite or data for what should stay (choices); none; again."),
]
GeneralWeight = Annotated[
    float | None,
    typer.Option("--general-weight", min=0, max=1, help="With --forgetting: its weight in the summary (0.5)."),
]
Base = Annotated[Path | None, typer.Option("--base", help="With --forgetting: where the run's base model is now.")]
NOTHING = "none"


def report_forgetting(
    models: list[str],
    new: tuple[str | None, ...],
    general: list[str] | None,
    figures: tuple[float | None, int | None, int, Path | None],
    out: Path | None,
    *,
    as_json: bool,
) -> None:
    """Measure what is not known, write the report in three forms, and print it."""
    from tunesmith.cli.output import answer, console, emit_json, show
    from tunesmith.errors import UsageError, Where
    from tunesmith.running.forgetting_tasks import LIMIT, WEIGHT, Wish
    from tunesmith.track.index import find_run
    from tunesmith.track.progress import make_progress

    if len(models) != 1:
        message = "--forgetting follows one run"
        raise UsageError("E455", message, where=Where("command line"), fixes=["tunesmith eval --forgetting RUN"])
    weight, limit, batch_size, base = figures
    asked = None if general is None else tuple(name for name in general if name != NOTHING)
    named = tuple(name for name in new if name is not None)
    wish = Wish(named, asked, WEIGHT if weight is None else weight, limit or LIMIT, base, batch_size)
    run = find_run(folder_named(models[0]) or models[0])
    with make_progress(console()) as progress:
        content, written = written_report(run, wish, progress, out)
    for one in content["shown"]:
        show(one)
    if as_json:
        emit_json(cast("dict[str, Any]", content["report"]))
        return
    from tunesmith.cli.forgetting_view import forgetting_view

    for part in forgetting_view(content["report"]):
        answer(part)
    for path in written:
        console().print(f"written: {path}", markup=False, soft_wrap=True)


def folder_named(name: str) -> Path | None:
    """The folder of this name. UsageError E455 for one that holds a model, and no run."""
    from tunesmith.errors import UsageError, Where
    from tunesmith.track.run_dir import is_run

    folder = Path(name).expanduser()
    if not folder.is_dir():
        return None
    if (folder / "config.json").is_file() and not is_run(folder):
        message = f"--forgetting follows a run through its checkpoints, and {name} is a model"
        fixes = ["name a run: tunesmith eval --forgetting last", f"tunesmith eval {name} OTHER --suite basic"]
        raise UsageError("E455", message, where=Where("command line", field="MODEL"), fixes=fixes)
    return folder


def written_report(run: RunDir, wish: Wish, progress: Progress, out: Path | None) -> tuple[dict[str, Any], list[Path]]:
    """The report as plain data with its warnings, and the files that hold it."""
    from tunesmith.evaluate.forgetting_told import markdown, page
    from tunesmith.running.forgetting import forgetting
    from tunesmith.track.files import disk_error, finite, replace_text, to_json
    from tunesmith.track.forgetting import FOLDER

    found = forgetting(run, wish, progress)
    report = cast("dict[str, Any]", finite(found.to_json()))
    folder = out or run.path / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder) from error
    texts = {
        "report.json": to_json(report, indent=1) + "\n",
        "report.md": markdown(report),
        "report.html": page(report),
    }
    for name, text in texts.items():
        replace_text(folder / name, text)
    return {"report": report, "shown": found.warnings}, [folder / name for name in texts]


def after_training(run: RunDir, recipe: Recipe) -> dict[str, Any] | None:
    """The report that ends a training with held-out general data; what goes wrong with it is a warning, W459."""
    from tunesmith.cli.output import console, show
    from tunesmith.errors import TunesmithError
    from tunesmith.running.forgetting_tasks import Wish
    from tunesmith.track.progress import make_progress

    if not recipe.data.general.eval or not recipe.evaluate.forgetting:
        return None
    gc.collect()  # what was trained is let go before it is loaded again
    try:
        with make_progress(console()) as progress:
            content, _ = written_report(run, Wish(general=(), limit=recipe.evaluate.forgetting), progress, None)
    except TunesmithError as error:
        found = error.diagnostic
        show(untold(run, found.where, f"{found.code}: {found.message}", found.fixes[:1]))
        return None
    except (
        KeyboardInterrupt,
        MemoryError,
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # the run is whole
        show(untold(run, None, f"{type(error).__name__}: {error}", []))
        return None
    for one in content["shown"]:
        show(one)
    return content["report"]


def untold(run: RunDir, where: Where | None, why: str, fixes: Sequence[Fix]) -> Diagnostic:
    """W459: the training is whole, its report is not."""
    from tunesmith.errors import Diagnostic, Fix

    again = Fix("try it again", command=f"tunesmith eval --forgetting {run.path}")
    message = "the training is finished, but what it learned and lost could not be told"
    return Diagnostic("W459", message, "warning", where, (why,), (*fixes, again))
