"""`tunesmith export`: a model in the form that another program reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from tunesmith.cli.model import ModelName, Weights
from tunesmith.cli.options import AsJson

if TYPE_CHECKING:
    from tunesmith.export.exporting import ExportReport, Form

FORMS = ("huggingface", "adapter", "gguf", "gguf-adapter", "ollama", "onnx")
DTYPES = ("float32", "bfloat16", "float16", "int8", "int4")


def register(app: typer.Typer) -> None:
    app.command("export")(export)


def export(
    model: ModelName,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new folder.", show_default=False)],
    to: Annotated[str, typer.Option("--to", help=f"One of {', '.join(FORMS)}.")] = "huggingface",
    kinds: Annotated[
        str,
        typer.Option("--type", help="Types of GGUF files: q8_0,q4_k_m. f16, bf16, q6_k, q3_k_m, q2_k, ..."),
    ] = "q8_0",
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help=f"Type of weights: {', '.join(DTYPES)}.",
            show_default=False,
        ),
    ] = None,
    shard: Annotated[str, typer.Option("--shard", help="Largest file of huggingface weights.")] = "5GB",
    context: Annotated[
        int | None, typer.Option("--context", min=1, help="Tokens that GGUF and Ollama offer.", show_default=False)
    ] = None,
    weights: Weights = "auto",
    json: AsJson = False,
) -> None:
    """Write a model for another program, read it back and compare its answers on twenty prompts."""
    from tunesmith.cli.model import check_words, choose_weights, split_words
    from tunesmith.cli.output import console
    from tunesmith.export.exporting import Wish
    from tunesmith.export.exporting import export as write

    check_words([to], FORMS, "--to")
    check_words([] if dtype is None else [dtype], DTYPES, "--dtype")
    which = choose_weights(weights)
    wish = Wish(cast("Form", to), tuple(split_words([kinds])), dtype, checked_size(shard), context)
    with console().status("writing, and comparing answers with the model's"):
        report = write(model, out, wish, which)
    tell(report, as_json=json)


def checked_size(shard: str) -> str:
    """UsageError E430 for what is no size such as 500MB or 5GB."""
    import re

    from tunesmith.errors import UsageError, Where

    if re.fullmatch(r"[1-9]\d*(KB|MB|GB)", shard.upper()) is None:
        where = Where("command line", field="--shard")
        raise UsageError("E430", f"{shard!r} is no size of a file", where=where, fixes=["--shard 5GB"])
    return shard.upper()


def tell(report: ExportReport, *, as_json: bool) -> None:
    """What was written, and how near it is to its source."""
    from tunesmith.cli.output import answer, emit_json, show

    if as_json:
        emit_json(report.to_json())
        return
    for warning in report.warnings:
        show(warning)
    lines = "\n".join(f"  {check}" for check in report.checks)
    answer(f"[bold green]exported[/] {report.folder}  {report.form}, {report.bytes / 1e9:.2f} GB\n{lines}")
