"""How the report on forgetting looks on a terminal; it reads plain data and imports nothing heavy."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tunesmith.track.forgetting import STATES, TASKS, headline, last_of, state_rows, task_rows

STYLES = {"worse": "red", "better": "green", "open": "dim"}
MOST = 5  # lines of advice; the rest stands in the report's files
SHORT = (0, 1, 3, 4, 5)  # columns of TASKS that fit a terminal


def forgetting_view(report: dict[str, Any]) -> list[RenderableType]:
    """Every state, the tasks of the last one, what to take and what to turn on."""
    states = grid(STATES, ("", "right", "right", "right", ""))
    for row in state_rows(report):
        states.add_row(*map(plain, row))
    tasks = grid([TASKS[at] for at in SHORT], ("", "", "right", "right", "right"))
    last = last_of(report)
    for row, one in zip(task_rows(report, last), last["changes"], strict=True):
        mark, *cells = (row[at] for at in SHORT)
        tasks.add_row(Text(mark, STYLES[one["verdict"]]), *map(plain, cells))
    parts: list[RenderableType] = [states, Text(), tasks, Text(), *(plain(line) for line in headline(report))]
    for one in report["advice"][:MOST]:
        parts.append(plain(f"- {one['says']}"))
        if one["command"]:
            parts.append(Text(f"    {clean(one['command'])}", "cyan"))
    return parts


def grid(titles: tuple[str, ...] | list[str], sides: tuple[str, ...]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for title, side in zip(titles, sides, strict=True):
        table.add_column(title, justify="right" if side == "right" else "left", overflow="fold")
    return table


def plain(text: str) -> Text:
    return Text(clean(text))


def clean(text: str) -> str:
    """Without control characters, so that a file cannot drive the terminal."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
