"""How scores and their worth are shown: tables for people, a line per record for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from tunesmith.evaluate.values import Measured


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One JSON object per record and line."""
    from tunesmith.track.files import disk_error

    try:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    except OSError as error:
        raise disk_error(error, path) from error


def values_view(found: Measured) -> list[RenderableType]:
    """Scores with their intervals, then what lies behind them: groups of pairs, classes, confusion, reliability."""
    from rich.text import Text

    parts: list[RenderableType] = []
    for task, scores in found.scores.items():
        table = columns("task", "metric", "value", "95 % interval", "n")
        for name, each in scores.items():
            table.add_row(Text(task), name, f"{each.value:.4g}", f"{each.low:.4g} to {each.high:.4g}", f"{each.n:,}")
        parts.append(table)
        detail = found.detail[task]
        if "breakdown" in detail:
            parts.append(breakdown_view(detail["breakdown"]))
        if "classes" in detail:
            parts += [classes_view(detail["classes"]), confusion_view(detail["confusion"])]
        if "calibration" in detail:
            parts.append(calibration_view(detail["calibration"]))
    return parts


def breakdown_view(groups: Mapping[str, Any]) -> Table:
    from rich.text import Text

    table = columns("pairs", "accuracy", "95 % interval", "margin", "longer by", "n")
    for name, group in groups.items():
        hit, margin, (low, high) = group["accuracy"], group["margin"], group["longer_by"]
        interval = f"{hit['low']:.3f} to {hit['high']:.3f}"
        longer = f"{low:+,} to {high:+,}"
        table.add_row(Text(name), f"{hit['value']:.3f}", interval, f"{margin['value']:.3f}", longer, f"{hit['n']:,}")
    return table


def classes_view(classes: Mapping[str, Any]) -> Table:
    from rich.text import Text

    table = columns("class", "precision", "recall", "F1", "n")
    for name, each in classes.items():
        shown = ["-" if each[key] is None else f"{each[key]['value']:.3f}" for key in ("precision", "recall")]
        table.add_row(Text(name), *shown, f"{each['f1']:.3f}", f"{each['n']:,}")
    return table


def confusion_view(confusion: Mapping[str, Any]) -> Table:
    from rich.text import Text

    table = columns("labelled \\ found", *confusion["classes"])
    for name, counts in zip(confusion["classes"], confusion["counts"], strict=True):
        table.add_row(Text(name), *(f"{count:,}" for count in counts))
    return table


def calibration_view(bins: Sequence[Mapping[str, Any]]) -> Table:
    table = columns("how sure", "how often right", "95 % interval", "n")
    for each in bins:
        right = each["right"]
        interval = f"{right['low']:.3f} to {right['high']:.3f}"
        table.add_row(f"{each['confidence']:.3f}", f"{right['value']:.3f}", interval, f"{right['n']:,}")
    return table


def columns(*titles: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for place, title in enumerate(titles):
        table.add_column(Text(title), justify="left" if place == 0 or title == "metric" else "right")
    return table
