"""`tunesmith doctor`: what the environment offers and lacks, each finding with its fix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from tunesmith.cli.options import AsJson
from tunesmith.cli.output import answer, emit_json, show

if TYPE_CHECKING:
    from tunesmith.doctor import Finding

MARKS = {"ok": "[green]✓[/green]", "info": "[blue]·[/blue]", "warning": "[yellow]![/yellow]", "error": "[red]✗[/red]"}


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(as_json: AsJson = False) -> None:
    """Check this environment: packages, hardware, disk, the starter model."""
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
