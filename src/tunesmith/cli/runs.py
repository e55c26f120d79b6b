"""`tunesmith runs`: list, show, follow, stop and compare runs; only files are read, nothing heavy is imported."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.options import AsJson
from tunesmith.cli.output import answer, console, emit_json
from tunesmith.cli.train import resume_run
from tunesmith.errors import Fix, UsageError, Where

Run = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder, name, beginning of a name, or last.", show_default=False)
]
Folder = Annotated[Path, typer.Option("--folder", metavar="FOLDER", help="Folder that holds the runs.")]
RUNS = Path("runs")
POLL_SECONDS = 1.0


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="List, show, follow, stop and compare runs.", invoke_without_command=True)
    group.callback()(runs)
    group.command("ls")(list_runs)
    group.command("show")(show_run)
    group.command("tail")(tail)
    group.command("stop")(stop)
    group.command("compare")(compare)
    group.command("resume")(resume_run)
    app.add_typer(group, name="runs")


def runs(context: typer.Context, folder: Folder = RUNS, as_json: AsJson = False) -> None:
    """List, show, follow, stop and compare runs."""
    if context.invoked_subcommand is None:
        list_runs(folder, as_json)


def list_runs(folder: Folder = RUNS, as_json: AsJson = False) -> None:
    """List the runs of a folder, the newest first."""
    from tunesmith.cli.runs_view import list_view
    from tunesmith.track.files import finite
    from tunesmith.track.index import scan

    found = scan(folder)
    if as_json:
        emit_json({"runs": [finite(each.to_json()) for each in found]})
    elif found:
        answer(list_view(found))
    else:
        console().print(f"no runs in {folder}/", markup=False)
        console().print("[dim]next:[/dim] tunesmith quickstart")


def show_run(
    run: Run,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the curves into the run's folder: plot.png")] = False,
    folder: Folder = RUNS,
    as_json: AsJson = False,
) -> None:
    """Show a run: how far, plan against actual, evaluations, warnings."""
    from tunesmith.cli.runs_report import report_of
    from tunesmith.cli.runs_view import show_view
    from tunesmith.track.files import finite
    from tunesmith.track.index import find_run

    found = find_run(run, folder)
    report = report_of(found)
    if plot:
        from tunesmith.track.plot import plot_run

        report["plot"] = str(plot_run(found))
    if as_json:
        emit_json(finite(report))
    else:
        for part in show_view(report):
            answer(part)


def tail(
    run: Run,
    count: Annotated[int, typer.Option("-n", "--lines", min=0, help="How many rows to begin with.")] = 10,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends.")] = False,
    folder: Folder = RUNS,
    as_json: AsJson = False,
) -> None:
    """Print the last metrics of a run; with --json --follow one object per row."""
    from tunesmith.cli.runs_view import row_line
    from tunesmith.track.files import finite
    from tunesmith.track.index import find_run, summarise
    from tunesmith.track.reader import read_from
    from tunesmith.track.status import ACTIVE

    found = find_run(run, folder)
    rows, offset = read_from(found.metrics_file, 0)
    rows = rows[-count:] if count else []
    if as_json and not follow:
        emit_json({"run": found.id, "rows": finite(rows)})
        return
    while True:
        for row in rows:
            emit_json({"row": finite(row)}) if as_json else answer(row_line(row))
        if not follow:
            return
        active = summarise(found).state in ACTIVE
        rows, offset = read_from(found.metrics_file, offset)
        if not rows and not active:
            return
        if not rows:
            time.sleep(POLL_SECONDS)


def stop(run: Run, folder: Folder = RUNS, as_json: AsJson = False) -> None:
    """Ask a running run to save and stop."""
    from tunesmith.track.index import find_run, summarise
    from tunesmith.track.status import ACTIVE

    found = find_run(run, folder)
    summary = summarise(found)
    where = Where(summary.path)
    if summary.state not in ACTIVE:
        detail = f" ({summary.reason})" if summary.reason else ""
        fix = Fix("look at it", command=f"tunesmith runs show {summary.path}")
        raise UsageError("E195", f"{found.id} is not running, it is {summary.state}{detail}", where=where, fixes=[fix])
    process = found.read_status().process
    if process.alive() is None:
        fixes = [Fix(f"on {process.host}", command=f"kill -TERM {process.pid}")]
        message = f"{found.id} runs as {process}, which cannot be reached from here"
        raise UsageError("E195", message, where=where, fixes=fixes)
    if not process.terminate():
        raise UsageError("E195", f"{found.id} has just ended", where=where)
    if as_json:
        emit_json({"run": found.id, "pid": process.pid, "signal": "SIGTERM"})
    else:
        console().print(f"asked {process} to finish its step, save and stop", markup=False)


def compare(
    one: Run,
    other: Annotated[str, typer.Argument(metavar="RUN", help="The run to compare it with.", show_default=False)],
    folder: Folder = RUNS,
    as_json: AsJson = False,
) -> None:
    """Compare two runs: the settings that differ, and what came out."""
    from tunesmith.cli.runs_report import comparison
    from tunesmith.cli.runs_view import compare_view
    from tunesmith.track.files import finite
    from tunesmith.track.index import find_run

    result = comparison(find_run(one, folder), find_run(other, folder))
    if as_json:
        emit_json(finite(result))
    else:
        answer(compare_view(result))
