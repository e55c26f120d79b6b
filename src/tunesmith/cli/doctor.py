"""`tunesmith doctor`: what the environment offers and lacks, each finding with its fix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.options import AsJson
from tunesmith.cli.output import answer, emit_json, show

if TYPE_CHECKING:
    from tunesmith.doctor import Finding

MARKS = {"ok": "[green]✓[/green]", "info": "[blue]·[/blue]", "warning": "[yellow]![/yellow]", "error": "[red]✗[/red]"}


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(
    prune_older_than: Annotated[
        float | None,
        typer.Option(metavar="DAYS", min=1, help="Only remove prepared data and cached figures not written for DAYS."),
    ] = None,
    chaos: Annotated[
        bool,
        typer.Option("--chaos", help="Break a tiny training on purpose, in a few minutes, and tell what came of it."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check this environment: packages, hardware, disk, caches, the starter model."""
    if chaos:
        tell_chaos(as_json)
        return
    if prune_older_than is not None:
        tell_pruned(prune_older_than, as_json)
        return
    from tunesmith.doctor import environment, examine
    from tunesmith.errors import MachineError

    findings = list(examine())
    blocked = any(finding.state == "error" for finding in findings)
    if as_json:
        rows = [finding.to_json() for finding in findings]
        emit_json({"ok": not blocked, "findings": rows, "environment": environment()})
    else:
        _print(findings)
    if blocked:
        raise typer.Exit(MachineError.exit_code)


def tell_pruned(days: float, as_json: bool) -> None:
    """Remove old caches and say what was freed; they are made again when a run needs them."""
    from tunesmith.data.caches import prune

    freed = prune(days)
    if as_json:
        emit_json({"removed": {each.name: {"entries": each.entries, "bytes": each.bytes} for each in freed}})
        return
    told = ", ".join(f"{each.entries} of {each.name} ({each.bytes / 1e9:.2f} GB)" for each in freed)
    answer(f"removed what nothing has written for {days:g} days: {told}")


def tell_chaos(as_json: bool) -> None:
    """Every trial as it ends; exit code 1 when one did not hold."""
    from tempfile import TemporaryDirectory

    from rich.markup import escape

    from tunesmith.chaos import Trial, torture

    trials: list[Trial] = []
    with TemporaryDirectory(prefix="tunesmith-chaos-") as folder:
        for trial in torture(Path(folder)):
            trials.append(trial)
            if not as_json:
                answer(f"{MARKS['ok' if trial.held else 'error']} [bold]{trial.fault}[/bold]: {escape(trial.found)}")
    held = sum(trial.held for trial in trials)
    if as_json:
        emit_json({"ok": held == len(trials), "trials": [trial.to_json() for trial in trials]})
    else:
        answer(f"\n{held} of {len(trials)} held.")
    if held < len(trials):
        raise typer.Exit(1)


def _print(findings: list[Finding]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for finding in findings:
        table.add_row(MARKS[finding.state], f"[bold]{finding.name}[/bold]", escape(finding.text))
    answer(table)
    problems = [finding.problem for finding in findings if finding.problem is not None]
    for problem in problems:
        if problem.level != "info":
            show(problem)
    if not any(problem.level in ("error", "warning") for problem in problems):
        answer("\n[green]Ready.[/green]  [dim]tunesmith quickstart · tunesmith plan sft data.train=FILE[/dim]")
