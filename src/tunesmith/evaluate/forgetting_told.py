"""The report on forgetting as Markdown and as one HTML page that needs nothing else."""

from __future__ import annotations

from typing import Any

from tunesmith.evaluate.front_plot import Dot, front_plot
from tunesmith.evaluate.page import document, safe
from tunesmith.evaluate.page import table as html_table
from tunesmith.evaluate.told import table
from tunesmith.track.forgetting import STATES, TASKS, explained, headline, last_of, state_rows, task_rows

Content = dict[str, Any]


def shown(report: Content) -> list[Content]:
    """The states whose tasks are told one by one: the last, and the one to take where that is another."""
    last = last_of(report)
    best = next(one for one in report["points"] if one["name"] == report["best"])
    return [last] if best is last or best is report["points"][0] else [best, last]


def markdown(report: Content) -> str:
    """The whole report as one page."""
    parts = [f"# Learned and forgotten: {report['run']}", "", *(f"- {line}" for line in headline(report))]
    parts += [f"- **{one['code']}** {one['message']}" for one in report["warnings"]]
    parts += ["", explained(report), "", *table(STATES, state_rows(report))]
    for point in shown(report):
        parts += ["", f"## {point['name']} against the base", "", *table(TASKS, task_rows(report, point))]
    if report["advice"]:
        parts += ["", "## Advice", ""]
        for one in report["advice"]:
            parts.append(f"- {one['says']}")
            if one["command"]:
                parts += ["", "  ```console", f"  $ {one['command']}", "  ```", ""]
    return "\n".join(parts).rstrip("\n") + "\n"


def page(report: Content) -> str:
    """The whole page. Well-formed XML as well as HTML; no scripts, and nothing is fetched."""
    title = f"Learned and forgotten: {report['run']}"
    body = [f"<h1>{safe(title)}</h1>", *(f"<p>{safe(line)}</p>" for line in headline(report))]
    body += [f'<div class="note"><b>{one["code"]}</b> {safe(one["message"])}</div>' for one in report["warnings"]]
    body += ["<h2>New task and the rest</h2>", f'<p class="soft">{safe(explained(report))}</p>', plot(report)]
    body.append(html_table(STATES, state_rows(report)))
    for point in shown(report):
        styles = [one["verdict"] for one in point["changes"]]
        body += [f"<h2>{safe(point['name'])} against the base</h2>"]
        body.append(html_table(TASKS, task_rows(report, point), styles))
    if report["advice"]:
        body.append("<h2>Advice</h2>")
        for one in report["advice"]:
            command = f"<pre>{safe(one['command'])}</pre>" if one["command"] else ""
            body.append(f"<p>{safe(one['says'])}</p>{command}")
    return document(title, body)


def plot(report: Content) -> str:
    """Learned above kept, in percent, with the front as a line."""
    front = report["front"]

    def ends(one: Content, side: str) -> tuple[float, ...]:
        return tuple(100 * one[side][end] for end in ("value", "low", "high"))

    dots = [
        Dot(one["name"], ends(one, "kept"), ends(one, "learned"), one["name"] in front, one["name"] == report["best"])
        for one in report["points"]
    ]
    return front_plot("Learned, %, beside the change of general figures, %", dots)
