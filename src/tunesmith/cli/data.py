"""`tunesmith data`: the exact tokens of a recipe's records, what is wrong with them, repaired and converted copies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.convert import register as register_convert
from tunesmith.cli.options import AsJson, Overrides, RecipeName
from tunesmith.cli.output import answer, console, emit_json, fetching, show

if TYPE_CHECKING:
    from rich.table import Table

    from tunesmith.data.check import CheckReport
    from tunesmith.data.tokenizer import Tokenizer
    from tunesmith.recipe import Recipe
    from tunesmith.types import Task

BAD_DATA = 4


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Look at the data: exact tokens, checks, repairs, conversions.", no_args_is_help=True)
    group.command("preview")(preview)
    group.command("check")(check)
    group.command("fix")(fix)
    register_convert(group)
    app.add_typer(group, name="data")


def preview(
    recipe: RecipeName,
    overrides: Overrides = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many records.")] = 3,
    html: Annotated[Path | None, typer.Option("--html", help="Also write a page to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the exact tokens of the first records: trained, masked, special, cut."""
    from dataclasses import asdict

    from tunesmith.data.preview import preview as examples_of
    from tunesmith.data.preview import to_html, to_text
    from tunesmith.track.files import disk_error

    settings, tokenizer, task = load(recipe, overrides)
    examples = examples_of(settings.data, tokenizer, count, task)
    if html is not None:
        try:
            html.write_text(to_html(examples), encoding="utf-8")
        except OSError as error:
            raise disk_error(error, html) from error
        console().print(f"written: {html}", markup=False)
    if as_json:
        emit_json({"examples": [asdict(example) for example in examples]})
    else:
        answer(to_text(examples))


def check(recipe: RecipeName, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Count everything that could spoil a run, each finding with its fix; exit code 4 when one is an error."""
    from tunesmith.data.check import check_data
    from tunesmith.planning.judged import epoch_problems

    settings, tokenizer, task = load(recipe, overrides)
    report = check_data(settings.data, tokenizer, None, task)
    if settings.online is None:  # a loop that samples its own records is judged by what it makes of them
        lacking = (
            finding for part in report.sets if part.name == "train" for finding in epoch_problems(settings, part.epoch)
        )
        report = report.with_findings(lacking)
    if as_json:
        emit_json(report.to_json())
    else:
        answer(table_of(report))
        for finding in report.findings:
            show(finding)
        if not report.findings:
            console().print("[green]nothing to mend[/green]")
    if report.failed:
        raise typer.Exit(BAD_DATA)


def fix(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A jsonl, json, csv or txt file.", show_default=False)],
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help="The new file.", show_default=False)] = None,
    drop_identical: Annotated[
        bool, typer.Option("--drop-identical", help="Also leave out records whose answers do not differ.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a repaired copy of a broken file; what would need a guess is listed, never guessed."""
    from dataclasses import asdict

    from tunesmith.data.fix import fix_file, fixed_name

    report = fix_file(source, out or fixed_name(source), drop_identical=drop_identical)
    if as_json:
        emit_json(asdict(report))
    else:
        mended = ", ".join(f"{count} {kind}" for kind, count in report.fixed.items()) or "nothing to mend"
        answer(f"{report.out}: {report.lines:,} lines, {mended}")
        for diagnostic in report.unfixable:
            show(diagnostic)
    if report.unfixable:
        raise typer.Exit(BAD_DATA)


def load(recipe: str, overrides: list[str] | None) -> tuple[Recipe, Tokenizer, Task]:
    """The recipe, the tokenizer of its model, and what records are to it; no weight is loaded."""
    from tunesmith.data.tokenizer import load_tokenizer
    from tunesmith.planning.inputs import find_inputs
    from tunesmith.recipe import load_recipe
    from tunesmith.recipe.task import resolve_task

    loaded = load_recipe(recipe, overrides or ()).recipe
    with fetching() as progress:
        tokenizer = load_tokenizer(find_inputs(loaded, progress), loaded.model.new_tokens)
    return loaded, tokenizer, resolve_task(loaded)


def table_of(report: CheckReport) -> Table:
    from rich.table import Table

    headings, *rows = report.rows()
    table = Table(box=None, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table
