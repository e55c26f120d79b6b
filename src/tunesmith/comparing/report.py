"""The comparison as a table: for a terminal, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.comparing.rows import Row, front

HEADINGS = (
    "method",
    "trained",
    "rate",
    "peak GB",
    "planned",
    "tokens/s",
    "per CPU-s",
    "score",
    "task loss",
    "general loss",
    "file",
)
SHORT = ("method", "trained", "rate", "peak GB", "tokens/s", "score", "forgotten", "file")


def short(row: Row) -> tuple[str, ...]:
    """One line of the table for a terminal, in the order of SHORT."""
    whole = dict(zip(HEADINGS, cells(row), strict=True))
    score, forgotten = given(row.score, "{:.1%}"), given(row.forgotten, "{:+.3f}")
    return tuple({**whole, "score": score, "forgotten": forgotten}[heading] for heading in SHORT)


def cells(row: Row) -> tuple[str, ...]:
    """One line of the table, in the order of HEADINGS."""
    if row.problem is not None:
        return (row.name, f"not trained: {row.problem}", *[""] * (len(HEADINGS) - 2))
    return (
        row.name,
        percent(row.share) if row.trained else "",
        given(row.rate, "{:g}"),
        given(row.peak_bytes, "{:.2f}", 1e9),
        given(row.planned_over_peak, "{:.2f} x"),
        given(row.tokens_per_second, "{:.0f}"),
        given(row.tokens_per_cpu_second, "{:.0f}"),
        "" if row.score is None else f"{row.score:.1%} ({row.low:.0%} to {row.high:.0%})",
        given(row.task_loss, "{:.3f}"),
        given(row.general, "{:.3f}") + ("" if row.forgotten is None else f" ({row.forgotten:+.3f})"),
        "" if not row.file_bytes else size(row.file_bytes),
    )


def given(value: float | None, form: str, unit: float = 1.0) -> str:
    return "" if value is None else form.format(value / unit)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown, those that no other method beats in bold."""
    best = front(rows)
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    for row in rows:
        name, *others = cells(row)
        lines.append(f"| {' | '.join([f'**{name}**' if row.name in best else name, *others])} |")
    return "\n".join(lines) + "\n"


def to_json(rows: Sequence[Row], recipe: str, settings: Sequence[str]) -> dict[str, Any]:
    return {
        "recipe": recipe,
        "settings": list(settings),
        "methods": [row.to_json() for row in rows],
        "front": list(front(rows)),
    }
