"""`tunesmith adapters`: list them, combine or merge several, bring one into another form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from tunesmith.cli.merging import numbers, tell_merged
from tunesmith.cli.options import AsJson
from tunesmith.cli.output import answer, console, emit_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from tunesmith.export.adapters import AdapterReport, Form
    from tunesmith.models.adapter_folder import AdapterFacts
    from tunesmith.models.adapters.combining import Rule

RULES = ("linear", "cat", "svd", "ties", "dare", "dare_ties")
FORMS = ("lora", "rslora", "oft", "oft_series")
DTYPES = ("float32", "bfloat16")

Out = Annotated[Path, typer.Option("--out", "-o", help="The new adapter folder.", show_default=False)]
AdapterNames = Annotated[
    list[str], typer.Argument(metavar="ADAPTER...", help="Adapter folders or runs.", show_default=False)
]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="List, combine, merge and convert adapters.", no_args_is_help=True)
    group.command("ls")(list_adapters)
    group.command("add")(add)
    group.command("merge")(merge)
    group.command("convert")(convert)
    app.add_typer(group, name="adapters")


def list_adapters(
    adapters: AdapterNames,
    model: Annotated[str | None, typer.Option("--model", help="Does each fit this model?", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """What adapter folders hold: method, rank, targets, size, base; of a folder of folders all in it."""
    from tunesmith.models.adapter_folder import adapter_folders, describe_adapter

    folder = None
    if model is not None:
        from tunesmith.models.locate import locate

        folder = locate(model)
    found = [describe_adapter(path, folder) for name in adapters for path in adapter_folders(name)]
    if as_json:
        emit_json({"adapters": [facts.to_json() for facts in found]})
    else:
        answer(list_view(found))


def list_view(found: Sequence[AdapterFacts]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    titles = ["adapter", "method", "rank", "alpha", "layers", "parameters", "size", "base"]
    asked = any(facts.misfit is not None for facts in found)
    for title in [*titles, "fits"] if asked else titles:
        table.add_column(title, overflow="fold", justify="left" if title in ("adapter", "method", "base") else "right")
    for facts in found:
        ranks = " ".join(map(str, facts.rank[:3])) + (" ..." if len(facts.rank) > 3 else "")
        cells = [
            facts.folder, facts.method, ranks, "" if facts.alpha is None else f"{facts.alpha:g}",
            f"{facts.layers} ({', '.join(facts.targets)})", f"{facts.parameters:,}", f"{facts.bytes / 1e6:.1f} MB",
            facts.base,
        ]  # fmt: skip
        table.add_row(*cells, *([facts.misfit or "yes"] if asked else []))
    return table


def add(
    adapters: AdapterNames,
    out: Out,
    weights: Annotated[
        str | None, typer.Option("--weights", "-w", help="One for each, as in 0.7,0.3; else their mean.")
    ] = None,
    method: Annotated[str, typer.Option("--method", help="linear, cat, svd, ties, dare or dare_ties.")] = "linear",
    density: Annotated[float, typer.Option(help="Share of numbers that ties and dare keep.")] = 0.2,
    rank: Annotated[int | None, typer.Option(help="Rank of the result, by SVD.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what dare drops.")] = 0,
    base: Annotated[
        str | None, typer.Option("--base", help="Base of all, where they name it differently.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Combine several LoRA adapters of one base into one."""
    from tunesmith.cli.model import check_words
    from tunesmith.export.adapters import add_adapters
    from tunesmith.models.adapters.combining import Mix

    rule = cast("Rule", check_words([method], RULES, "--method")[0])
    mix = Mix(rule, numbers(weights, "--weights"), density, rank, seed)
    with console().status("combining"):
        report = add_adapters(adapters, out, mix, base)
    tell(report, as_json=as_json)


def merge(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER... MODEL OUT", help="Adapters or runs, the model, the new folder.", show_default=False
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Merge adapters into a model one after another, each with its predictions checked."""
    from tunesmith.errors import UsageError, Where
    from tunesmith.export.huggingface import merge_chain

    if len(names) < 3:
        message = f"{len(names)} names are given: one or more adapters, the model, and the new folder are wanted"
        raise UsageError("E020", message, where=Where("command line"), fixes=["tunesmith adapters merge A B MODEL OUT"])
    *adapters, model, out = names
    with console().status("merging, and comparing predictions with each adapter's"):
        report = merge_chain(adapters, model, Path(out))
    tell_merged(report, as_json=as_json)


def convert(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="An adapter folder or a run.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new adapter folder.", show_default=False)],
    to: Annotated[str, typer.Option("--to", help="lora, rslora, oft (exact rotations) or oft_series.")] = "lora",
    rank: Annotated[int | None, typer.Option(help="At most this rank, by SVD.", show_default=False)] = None,
    dtype: Annotated[str, typer.Option(help="Type of the numbers: float32 or bfloat16.")] = "float32",
    model: Annotated[
        str | None, typer.Option("--model", help="Its base, if the folder does not lead there.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring an adapter into another form; what is lost is told."""
    from tunesmith.cli.model import check_words
    from tunesmith.export.adapters import Wish, convert_adapter

    form = cast("Form", check_words([to], FORMS, "--to")[0])
    check_words([dtype], DTYPES, "--dtype")
    with console().status("converting"):
        report = convert_adapter(adapter, out, Wish(form, rank, dtype, model))  # pyright: ignore[reportArgumentType]
    tell(report, as_json=as_json)


def tell(report: AdapterReport, *, as_json: bool) -> None:
    if as_json:
        emit_json(report.to_json())
        return
    first, last = report.ranks
    ranks = f"rank {first}" if first == last else f"ranks {first} to {last}"
    lines = [f"[bold green]written[/] {report.folder}  {report.method}, {report.layers} layers, {ranks}"]
    if report.error > 1e-6:
        lines.append(
            f"{report.kept:.1%} of the update is kept (relative error {report.error:.2g}), "
            f"least in {report.layer}: {report.lowest:.1%}"
        )
    else:
        lines.append("the whole update is kept")
    if report.difference is not None:
        lines.append(f"its predictions differ from the old adapter's by {report.difference:.1g} nats per token")
    answer("\n".join(lines))
