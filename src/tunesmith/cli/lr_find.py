"""`tunesmith lr-find`: the learning rates that teach, from one short run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.options import AsJson, Overrides, RecipeName

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tunesmith.train.rates import RateCurve

ROWS, WIDTH = 16, 40  # lines of the curve, and columns of its bars


def register(app: typer.Typer) -> None:
    app.command("lr-find")(lr_find)


def lr_find(
    recipe: RecipeName,
    overrides: Overrides = None,
    low: Annotated[float, typer.Option("--from", min=1e-12, max=10, help="Rate of the first step.")] = 1e-6,
    high: Annotated[float, typer.Option("--to", min=1e-12, max=10, help="Rate of the last step.")] = 1e-1,
    steps: Annotated[int, typer.Option(min=20, max=100_000, help="Steps, if the loss does not go for good.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Train for a moment at a rising rate and suggest one; nothing is kept."""
    from tunesmith.cli.output import answer, emit_json, show
    from tunesmith.distributed.mesh import join_world
    from tunesmith.recipe import load_recipe
    from tunesmith.running.rates import rising, search_rates
    from tunesmith.track.progress import make_progress

    check_range(low, high)
    loaded = load_recipe(recipe, list(overrides or []))
    for warning in loaded.warnings:
        show(warning)
    check_one_run(loaded.recipe.online is not None)
    with tempfile.TemporaryDirectory() as folder, make_progress() as display:
        curve = search_rates(rising(loaded.recipe, low, high, steps, Path(folder)), join_world(), display)
    if as_json:
        emit_json(curve.to_json())
        return
    answer(view(curve))


def check_range(low: float, high: float) -> None:
    from tunesmith.errors import Fix, UsageError

    if low >= high:
        message = f"the rate is to rise, but --from {low:g} is not below --to {high:g}"
        raise UsageError("E341", message, fixes=[Fix(f"--from {high / 1e5:g}")])


def check_one_run(in_rounds: bool) -> None:
    from tunesmith.errors import Fix, UsageError, Where

    if in_rounds:
        message = "a recipe in rounds makes its own data between them; a rate is searched on data that is there"
        fix = Fix("leave the rounds out: online=null, and give data.train a file")
        raise UsageError("E342", message, where=Where(field="online"), fixes=[fix])


def view(curve: RateCurve) -> RenderableType:
    """The smoothed loss as bars, a line for every few rates, and what to write into the recipe."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("rate", "loss", ""):
        table.add_column(title, justify="left" if not title else "right")
    bottom, top = min(curve.losses), max(curve.losses[:1] + tuple(x for x in curve.losses if x < 2 * curve.losses[0]))
    stride = max(1, len(curve.rates) // ROWS)
    for rate, loss in list(zip(curve.rates, curve.losses, strict=True))[::stride]:
        share = min(1.0, (loss - bottom) / (top - bottom)) if top > bottom else 0.0
        table.add_row(f"{rate:.1e}", f"{loss:.4f}", "█" * max(1, round(WIDTH * share)))
    lines = [
        f"falls fastest at {curve.steepest:.1e}, lowest at {curve.lowest:.1e}",
        f"[bold]train.optimizer.lr={curve.suggested:g}[/]",
    ]
    return Group(table, Text(""), *(Text.from_markup(line) for line in lines))
