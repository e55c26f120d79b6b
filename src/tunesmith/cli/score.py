"""`tunesmith score`: the rewards or classes of every record of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.model import Weights
from tunesmith.cli.options import AsJson

if TYPE_CHECKING:
    from tunesmith.export.opening import Opened
    from tunesmith.models.meaning import Meaning


def register(app: typer.Typer) -> None:
    app.command("score")(score)


def score(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A reward model or classifier: a run or a folder.", show_default=False),
    ],
    data: Annotated[list[str], typer.Option("--data", help="Records to score: file, folder or glob; repeatable.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write a line per record here.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first n records of each.")] = None,
    max_length: Annotated[int, typer.Option("--max-length", min=8, help="Longest record, tokens.")] = 1_048_576,
    shape: Annotated[str, typer.Option(help="Shape of the records; auto recognises it.")] = "auto",
    weights: Weights = "auto",
    json: AsJson = False,
) -> None:
    """Score every answer or text of a file with a reward model or classifier."""
    from tunesmith.cli.model import check_words, open_for_use, shape_names
    from tunesmith.cli.output import answer, emit_json
    from tunesmith.cli.values_view import write_rows

    shape = check_words([shape], shape_names(), "--shape")[0]
    opened = open_for_use(model, weights, "values")
    sources = [{"path": path, "shape": shape} for path in data]
    rows, unused = score_all(opened, sources, {"limit": limit, "max_length": max_length})
    if out is not None:
        write_rows(rows, out)
    found = summary(rows, opened.source.meaning)
    if json:
        shown = {} if out is not None else {"rows": rows}
        emit_json({"out": out and str(out), "unused": unused, **found, **shown})
        return
    for line in [*told(found, unused), *([f"written: {out}"] if out is not None else [])]:
        answer(line)


def score_all(
    opened: Opened, sources: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """A row per record, and how many records were left out, by reason."""
    from tunesmith.cli.output import console
    from tunesmith.data.config import DataConfig, SourceConfig
    from tunesmith.evaluate.scored import score_source
    from tunesmith.evaluate.values import judging
    from tunesmith.track.progress import make_progress

    reading = judging(DataConfig.model_validate(settings), opened.model)
    rows: list[dict[str, Any]] = []
    unused: dict[str, int] = {}
    with make_progress(console()) as progress:
        for each in sources:
            source = SourceConfig.model_validate(each)

            def show(done: int, total: int, path: str = source.path) -> None:
                progress.phase(f"scoring {path}", done, total)

            made, left = score_source(opened.model, opened.tokenizer, opened.source.meaning, source, reading, show)
            rows += made
            for reason, count in left.items():
                unused[reason] = unused.get(reason, 0) + count
    return rows, unused


def summary(rows: Sequence[Mapping[str, Any]], meaning: Meaning) -> dict[str, Any]:
    """Counts of classes, or mean and spread of the scores; of pairs also how often the chosen answer is ahead."""
    import numpy as np

    found: dict[str, Any] = {"records": len(rows)}
    if meaning.classes:
        return {**found, "classes": {name: sum(row["class"] == name for row in rows) for name in meaning.classes}}
    scores = [value for row in rows for value in row["scores"]]
    pairs = [row["scores"] for row in rows if row["kind"] == "pair"]
    if scores:
        low, middle, high = np.quantile(scores, [0, 0.5, 1]).tolist()
        spread = {"mean": float(np.mean(scores)), "deviation": float(np.std(scores))}
        found |= {"scores": len(scores), **spread, "lowest": low, "median": middle, "highest": high}
    if pairs:
        found["chosen_ahead"] = sum(0.5 * (1 + np.sign(chosen - rejected)) for chosen, rejected in pairs) / len(pairs)
    return found


def told(found: Mapping[str, Any], unused: Mapping[str, int]) -> list[str]:
    """The summary in a few lines."""
    lines = [f"{found['records']:,} records"]
    if "classes" in found:
        lines += [f"  {name}: {count:,}" for name, count in found["classes"].items()]
    if "scores" in found:
        lines[0] += f", {found['scores']:,} scores"
        lines.append(f"mean {found['mean']:.3f}, standard deviation {found['deviation']:.3f}")
        lines.append(f"lowest {found['lowest']:.3f}, median {found['median']:.3f}, highest {found['highest']:.3f}")
    if "chosen_ahead" in found:
        lines.append(f"the chosen answer is ahead in {found['chosen_ahead']:.1%} of the pairs")
    return [*lines, *(f"{count:,} records left out: {reason.replace('_', ' ')}" for reason, count in unused.items())]
