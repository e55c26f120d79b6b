"""`tunesmith compare methods`: ways to adapt a model under one budget, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.options import AsJson, Overrides, RecipeName

if TYPE_CHECKING:
    from rich.table import Table

    from tunesmith.comparing.rows import Row

Names = Annotated[str, typer.Option("--methods", help="Methods by name, with commas between.", show_default=False)]
Listed = Annotated[Path | None, typer.Option("--list", help="A YAML file of methods with settings of their own.")]
General = Annotated[
    list[str] | None, typer.Option("--general", help="Other data, on which the loss should not rise; again for more.")
]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Train several methods under one budget and set them side by side.", no_args_is_help=True)
    group.command("methods")(methods)
    app.add_typer(group, name="compare")


def methods(
    recipe: RecipeName,
    overrides: Overrides = None,
    names: Names = "",
    list_file: Listed = None,
    general: General = None,
    out: Annotated[Path, typer.Option(help="Folder of runs, table and picture.")] = Path("comparison"),
    rate_scale: Annotated[
        float, typer.Option(min=1e-6, max=1e6, help="Times the usual rate of each method: more for short runs.")
    ] = 1.0,
    general_limit: Annotated[int, typer.Option(min=1, help="Records of general data that are measured.")] = 200,
    as_json: AsJson = False,
) -> None:
    """Train each method, measure memory, speed, score and what was forgotten, and draw the picture.

    What was trained and measured before, in the same folder with the same settings, is not done again.
    """
    from tunesmith.cli.output import answer, emit_json
    from tunesmith.comparing.entries import USUAL, listed, named
    from tunesmith.comparing.methods import Budget, compare
    from tunesmith.comparing.picture import draw
    from tunesmith.comparing.report import markdown, to_json
    from tunesmith.track.progress import make_progress

    chosen = tuple(name.strip() for name in names.split(",") if name.strip())
    entries = listed(list_file) if list_file else named(chosen or USUAL)
    settings = tuple(overrides or ())
    budget = Budget(recipe, settings, out, tuple(general or ()), general_limit, rate_scale)
    with make_progress() as display:
        rows = compare(budget, entries, display)
    found = to_json(rows, recipe, settings)
    (out / "comparison.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / "comparison.md").write_text(markdown(rows), encoding="utf-8")
    if any(row.trained for row in rows):
        draw(rows, out / "comparison.png")
    if as_json:
        emit_json(found)
        return
    answer(table(rows))
    answer(f"\n{out}/comparison.md, comparison.json and comparison.png hold this table and its picture.")


def table(rows: list[Row]) -> Table:
    """What fits a terminal of every method, those that no other one beats in bold."""
    from rich.table import Table

    from tunesmith.comparing.report import SHORT, short
    from tunesmith.comparing.rows import front

    best = front(rows)
    shown = Table(box=None, header_style="dim", pad_edge=False)
    for heading in SHORT:
        shown.add_column(heading, justify="left" if heading == SHORT[0] else "right", no_wrap=heading != SHORT[1])
    for row in rows:
        shown.add_row(*short(row), style="bold" if row.name in best else None)
    return shown
