"""`tunesmith quickstart`: a real model, before and after, in minutes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from tunesmith.cli.options import AsJson, Overrides

if TYPE_CHECKING:
    from rich.table import Table

    from tunesmith.evaluate.harness import Row
    from tunesmith.quickstart import Quickstart

INTRO = """[bold]Tunesmith quickstart[/bold]
SmolLM2-135M, a small chat model, learns to turn messy notes into strict JSON.
Its test notes are built from sentence frames that it never sees in training.
"""


def register(app: typer.Typer) -> None:
    app.command("quickstart")(quickstart)


def quickstart(overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Fine-tune the starter model and see it before and after, in minutes."""
    from tunesmith.cli.output import console, emit_json
    from tunesmith.cli.plan_view import plan_view
    from tunesmith.quickstart import quickstart as run_quickstart
    from tunesmith.track.progress import make_progress

    terminal = console()
    terminal.print(INTRO)
    with make_progress(terminal) as progress:
        done = run_quickstart(progress, overrides or [], lambda plan: terminal.print(plan_view(plan)))
    if as_json:
        emit_json(done.to_json())
    else:
        report(done)


def report(done: Quickstart) -> None:
    """The two tables, and what to try next, on stdout."""
    from tunesmith.cli.output import answer
    from tunesmith.track.progress import duration

    answer(scores(done))
    answer(examples(done))
    answer(f"\n[bold]{duration(done.seconds)}[/] in all. The run: {done.run}   The merged model: {done.merged}")
    answer("\n[bold]Try next[/]")
    for command, text in (
        (f"tunesmith chat {done.merged}", "talk to it"),
        (f"tunesmith runs show {done.run} --plot", "the plan against what happened, and the curves"),
        ("tunesmith train sft data.train=YOUR.jsonl", "your own data"),
    ):
        answer(f"  [cyan]{command}[/]  [dim]{text}[/]")


def scores(done: Quickstart) -> Table:
    from rich.table import Table

    content = done.to_json()
    table = Table(title=f"{content['after']['exact_match']['n']} held-out notes, 95 % intervals", title_justify="left")
    for heading in ("", "before", "after"):
        table.add_column(heading)
    for name, label in (("exact_match", "exactly right"), ("valid_json", "valid JSON")):
        table.add_row(label, *(percent(content[side][name]) for side in ("before", "after")))
    return table


def percent(score: dict[str, float]) -> str:
    return f"{score['value']:.1%}  ({score['low']:.0%} to {score['high']:.0%})"


def examples(done: Quickstart, count: int = 3) -> Table:
    """Notes side by side: answered wrongly before where there are such, the first ones otherwise."""
    from rich.table import Table

    table = Table(title="\nThe same notes, before and after", title_justify="left", show_lines=True)
    for heading in ("note", "before", "after"):
        table.add_column(heading, ratio=1, overflow="fold")
    chosen = sorted(done.rows, key=lambda pair: pair[0].ok or not pair[1].ok)[:count]
    for before, after in chosen:
        table.add_row(before.prompt, cell(before), cell(after))
    return table


def cell(row: Row) -> str:
    from rich.markup import escape

    text = row.answer if len(row.answer) <= 300 else row.answer[:300] + " ..."
    return f"[{'green' if row.ok else 'red'}]{'✓' if row.ok else '✗'}[/] {escape(text)}"
