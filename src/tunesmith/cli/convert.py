"""`tunesmith data convert`: records of one kind written as records of another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from tunesmith.cli.options import AsJson
from tunesmith.cli.output import answer, emit_json, show

if TYPE_CHECKING:
    from tunesmith.data.conversion import ConvertReport, Target, Which


def register(group: typer.Typer) -> None:
    group.command("convert")(convert)


def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A file, folder, glob or hub data set.", show_default=False)
    ],
    to: Annotated[str, typer.Option("--to", help="pairs, feedback, rankings, sft, or canonical: the same kind anew.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The new jsonl file.", show_default=False)] = None,
    margin: Annotated[float | None, typer.Option(min=0, help="Least distance of the scores of a pair.")] = None,
    adjacent: Annotated[bool, typer.Option("--adjacent", help="Pair each answer with the next one only.")] = False,
    best_worst: Annotated[bool, typer.Option("--best-worst", help="Pair the best answer with the worst.")] = False,
    kind: Annotated[str | None, typer.Option("--from", help="What the records are: pairs, feedback, ...")] = None,
    columns: Annotated[list[str] | None, typer.Option("--column", help="FIELD=COLUMN, may be repeated.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad records out and count them.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn records into pairs, feedback, rankings or answers to learn; what is left out is counted."""
    from tunesmith.cli.model import check_words
    from tunesmith.data.config import SourceConfig
    from tunesmith.data.conversion import KINDS, SOURCES, Wish, convert_file, default_out
    from tunesmith.data.tally import Tally
    from tunesmith.errors import UsageError, Where
    from tunesmith.track.files import disk_error

    check_words([to], tuple(SOURCES), "--to")
    check_words([] if kind is None else [kind], tuple(KINDS), "--from")
    if adjacent and best_worst:
        message = "--adjacent and --best-worst exclude each other"
        fixes = ["give one of them, or none: every better answer with every worse one"]
        raise UsageError("E221", message, where=Where("command line"), fixes=fixes)
    which = "adjacent" if adjacent else "best-worst" if best_worst else "all"
    wish = Wish(cast("Target", to), cast("Which", which), margin, None if kind is None else KINDS[kind])
    tally = Tally("skip" if skip_bad else "error")
    config = SourceConfig(path=source, columns=named_columns(columns or []))
    place = out or default_out(source, wish.target)
    try:
        report = convert_file(config, place, wish, tally, force=force)
    except OSError as error:
        raise disk_error(error, place) from error
    if as_json:
        emit_json({**report.to_json(), "warnings": [warning.to_json() for warning in tally.warnings]})
        return
    answer(told(report))
    for warning in tally.warnings:
        show(warning)


def told(report: ConvertReport) -> str:
    """The counts, one a line."""
    lines = [f"{report.out}: {report.written:,} records of {report.read:,} ({report.kind})"]
    lines += [f"   left out: {count:,} {reason}" for reason, count in report.left_out.items() if count]
    return "\n".join(lines)


def named_columns(pairs: list[str]) -> dict[str, str]:
    """FIELD=COLUMN words as a mapping."""
    from tunesmith.errors import UsageError, Where

    for pair in pairs:
        if "=" not in pair.strip("="):
            fixes = ["write our field, =, and the column of the file: --column prompt=question"]
            raise UsageError("E221", f"--column {pair!r} is no FIELD=COLUMN", where=Where("command line"), fixes=fixes)
    return dict(pair.split("=", 1) for pair in pairs)
