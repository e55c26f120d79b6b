"""`tunesmith merge` and `average`: one model folder of a run, a part of the way to it, or the mean of several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.model import ModelName, Weights
from tunesmith.cli.options import AsJson

if TYPE_CHECKING:
    from tunesmith.export.huggingface import MergeReport


def register(app: typer.Typer) -> None:
    app.command("merge")(merge)
    app.command("average")(average)


def merge(
    model: ModelName,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new model folder.", show_default=False)],
    weights: Weights = "auto",
    share: Annotated[
        float, typer.Option("--share", help="Part of the way from base to tuned weights; 1: all of it.")
    ] = 1.0,
    json: AsJson = False,
) -> None:
    """Merge a run's adapter into its base model, with the predictions checked."""
    from tunesmith.cli.model import choose_weights
    from tunesmith.cli.output import console
    from tunesmith.export.averaging import merge_share
    from tunesmith.export.huggingface import merge_run

    which = choose_weights(weights)
    with console().status("merging, and comparing predictions with the adapter's"):
        report = merge_run(model, out, which=which) if share == 1 else merge_share(model, out, share, which=which)
    tell_merged(report, as_json=json)


def average(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL... OUT", help="Runs or models, and the new folder.", show_default=False),
    ],
    shares: Annotated[
        str | None, typer.Option("--shares", help="One for each, as in 0.7,0.3; else all count the same.")
    ] = None,
    checkpoints: Annotated[
        int | None, typer.Option("--checkpoints", min=2, help="Of one run, its newest n.", show_default=False)
    ] = None,
    weights: Weights = "auto",
    json: AsJson = False,
) -> None:
    """Average the weights of several tuned models, or of checkpoints of one run."""
    from tunesmith.cli.model import choose_weights
    from tunesmith.cli.output import console
    from tunesmith.errors import UsageError, Where
    from tunesmith.export.averaging import average as mean_of
    from tunesmith.export.averaging import find_averaged

    if len(models) < 2:
        message = "one name is given: the models and the new folder are wanted"
        raise UsageError("E020", message, where=Where("command line"), fixes=["tunesmith average A B OUT"])
    *names, out = models
    with console().status("averaging"):
        sources = find_averaged(names, choose_weights(weights), checkpoints)
        report = mean_of(sources, Path(out), numbers(shares, "--shares"))
    tell_merged(report, as_json=json)


def tell_merged(report: MergeReport, *, as_json: bool) -> None:
    """What was written, and how near its predictions are to what they are compared with."""
    from tunesmith.cli.output import answer, emit_json

    if as_json:
        emit_json(report.to_json())
        return
    verb = "chat" if report.unit.startswith("nats") else "score"
    done, whose = ("averaged", "those of the mean") if report.averaged else ("merged", "the adapter's")
    if report.share < 1:
        done, whose = f"merged at a share of {report.share:g}", "those of the weights between"
    answer(
        f"[bold green]{done}[/] {report.folder}  {report.dtype}, {report.bytes / 1e9:.2f} GB\n"
        f"its predictions differ from {whose} by {report.difference:.1g} {report.unit} "
        f"(rounding explains up to {report.limit:g})\n  [cyan]tunesmith {verb} {report.folder}[/]"
    )


def numbers(text: str | None, option: str) -> tuple[float, ...]:
    """`0.7,0.3` or `0.7 0.3` as numbers; UsageError E360 for anything else."""
    from tunesmith.errors import UsageError, Where

    try:
        return tuple(float(word) for word in (text or "").replace(",", " ").split())
    except ValueError as error:
        where = Where("command line", field=option)
        raise UsageError("E360", f"{text!r} are no weights", where=where, fixes=[f"{option} 0.7,0.3"]) from error
