"""How runs look on a terminal; whatever came from files is shown as text, never as markup."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tunesmith.cli.forgetting_view import forgetting_view
from tunesmith.track.index import RunSummary
from tunesmith.track.preferences import FIGURES, LEARNED, ROUNDS
from tunesmith.track.progress import duration
from tunesmith.track.reader import Row, number

LOOKS = {
    "planned": ("·", "dim"),
    "queued": ("·", "dim"),
    "loading": ("▸", "cyan"),
    "running": ("▶", "bold cyan"),
    "saving": ("▶", "cyan"),
    "stopping": ("▶", "yellow"),
    "finished": ("✓", "green"),
    "stopped": ("■", "yellow"),
    "preempted": ("■", "yellow"),
    "failed": ("✗", "red"),
    "lost": ("?", "red"),
    "damaged": ("!", "red"),
}
NAMES = {
    "steps": "steps",
    "tokens": "tokens",
    "scored_tokens": "scored tokens",
    "saved_tokens": "saved by sharing",
    "tokens_per_step": "tokens per step",
    "seconds": "time",
    "tokens_per_second": "tokens/s",
    "scored_tokens_per_second": "scored tokens/s",
    "mfu": "model FLOP utilisation",
    "peak_memory_bytes": "peak memory",
    "first_loss": "first loss",
    "last_loss": "last loss",
    "eval_loss": "evaluation loss",
}
SHARES = ("rewards/accuracy", "accuracy", "displacement", "online/finished", "online/distinct")
LABELS = {
    "train/loss": "loss",
    "eval/loss": "evaluation loss",
    "train/lr": "lr",
    "train/grad_norm": "grad",
    "perf/tok_s": "tokens/s",
    "perf/mfu": "MFU",
    "mem/peak_gb": "GB",
}


def list_view(found: list[RunSummary]) -> RenderableType:
    table = _table("run", "state", ">step", ">loss", ">age")
    for each in found:
        step = f"{each.step:,}" + (f"/{each.total:,}" if each.total else "")
        loss = "" if each.loss is None else f"{each.loss:.4f}"
        age = duration(max(0.0, time.time() - each.created)) if each.created else ""
        table.add_row(plain(each.id), _state(each.state, each.reason), step, loss, age)
    return table


def show_view(report: dict[str, Any]) -> list[RenderableType]:
    """What `runs show` prints, one part after the other; strings are lines with markup, never broken."""
    parts: list[RenderableType] = [_line(report["run"]["id"], "bold"), _head(report["run"])]
    if report["plan"]:
        parts += [_title("plan against actual"), _plan_table(report["plan"])]
    figures = [(NAMES[name], figure(name, value)) for name, value in report["outcome"].items() if value is not None]
    parts += [_title("outcome"), _pairs(figures)]
    if report["preferences"]:
        parts += [_title("preferences"), _preferences(report["preferences"])]
        parts += [_line(text, "yellow") for text in report["worries"]]
    if report["signs"]:
        parts += [_title("what the curves say"), *(part for sign in report["signs"] for part in _sign(sign))]
    if report["layers"]:
        parts += [_title("layers"), _layers(report["layers"])]
    if report["accuracy"]:
        parts += [_title("accuracy"), _preferences(report["accuracy"])]
    if report["rounds"]:
        parts += [_title("rounds"), _rounds(report["rounds"])]
    if report["evaluations"]:
        parts += [_title("evaluations"), *(part for row in report["evaluations"] for part in _evaluation(row))]
    if report["forgetting"]:
        parts += [_title("learned and forgotten"), *forgetting_view(report["forgetting"])]
    if report["checkpoints"]:
        steps = ", ".join(f"{step:,}" for step in report["checkpoints"])
        parts += [_title("checkpoints"), _line(f"step {steps}")]
    if report["warnings"]:
        parts += [_title("warnings"), *(_line(_warning(row), "yellow") for row in report["warnings"][-10:])]
    if report["profile"]:
        parts += [_title("profile"), _line(report["profile"])]
    if report["log"]:
        parts += [_title("last lines of the log"), *(_line(line, "dim") for line in report["log"])]
    if report.get("plot"):
        parts += [_title("plot"), _line(report["plot"])]
    if report["next"]:
        parts += [_title("next"), *(_line(command, "cyan") for command in report["next"])]
    return parts


def _sign(sign: dict[str, Any]) -> list[RenderableType]:
    """What is wrong, by what it is seen, and what to change, the likeliest first."""
    fixes = [fix["label"] + (f"  ({fix['effect']})" if fix["effect"] else "") for fix in sign["fixes"]]
    lines = [f"{sign['message']} ({sign['code']}): {'; '.join(sign['evidence'])}", *(f"  fix: {fix}" for fix in fixes)]
    return [_line(lines[0], "yellow"), *(_line(line) for line in lines[1:])]


def compare_view(result: dict[str, Any]) -> RenderableType:
    one, other = (plain(name) for name in result["runs"])
    settings = _table("setting", one, other)
    for row in result["changed"]:
        settings.add_row(plain(row["key"]), *(plain("empty" if each is None else each) for each in row["values"]))
    results = _table("outcome", f">{one}", f">{other}", ">change")
    for row in result["outcome"]:
        before, after = row["values"]
        if before is None and after is None:
            continue
        alike = result["same_loss"] or not row["name"].endswith("loss")
        change = f"{after / before - 1:+.1%}" if before and after is not None and alike else ""
        results.add_row(NAMES[row["name"]], figure(row["name"], before), figure(row["name"], after), change)
    same = Text("every setting is the same", style="dim")
    parts: list[RenderableType] = [settings if result["changed"] else same, Text(), results]
    if not result["same_loss"]:
        parts.append(Text("losses of different objectives have no scale in common", style="dim"))
    if result["preferences"]:
        parts += [Text(), _compared(result["preferences"], one, other)]
    return Group(*parts)


def _compared(rows: list[dict[str, Any]], one: str, other: str) -> Table:
    """Preference figures at the end of both runs, in training and held out."""
    table = _table("at the end", f">{one}", f">{other}", f">{one} held out", f">{other} held out")
    for row in rows:
        table.add_row(
            FIGURES[row["name"]], *(_preference(row["name"], each) for each in row["values"] + row["held_out"])
        )
    return table


def row_line(row: Row) -> str:
    """One metrics row on one line, with markup."""
    if "event" in row:
        return _line(_fields(row), "dim")
    values = [(label, number(row.get(name))) for name, label in LABELS.items()]
    shown = "  ".join(f"{label} {value:.4g}" for label, value in values if value is not None)
    return _line(f"step {row.get('step', '?'):>6}  {shown}")


def figure(name: str, value: float | None) -> str:
    """A figure of an outcome in its unit."""
    if value is None:
        return ""
    if name == "seconds":
        return duration(value)
    if name == "mfu":
        return f"{value:.1%}"
    if name == "peak_memory_bytes":
        return f"{value / 1e9:.2f} GB"
    return f"{value:.4f}" if name.endswith("loss") else f"{value:,.0f}"


def plain(value: Any) -> str:
    """Text without control characters, so that a file cannot drive the terminal."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(value))


def _head(run: dict[str, Any]) -> RenderableType:
    step = f"step {run['step']:,}" + (f" of {run['total']:,}" if run["total"] else "")
    left = f"  ·  {duration(run['eta'])} left" if run["eta"] else ""
    attempt = f"  ·  attempt {run['attempt']}" if run["attempt"] > 1 else ""
    return Text.assemble(_state(run["state"], run["reason"]), f"  ·  {step}{left}{attempt}")


def _plan_table(lines: list[dict[str, Any]]) -> RenderableType:
    table = _table("", ">plan", ">actual", ">actual/plan")
    for line in lines:
        ratio = "" if line["ratio"] is None else f"{line['ratio']:.2f}"
        name = line["name"]
        table.add_row(NAMES[name], figure(name, line["plan"]), figure(name, line["actual"]), ratio)
    return table


def _layers(rows: list[dict[str, Any]]) -> RenderableType:
    """Medians over the run of each layer's gradient norm, and of its update beside its weights."""
    table = _table("layer", ">gradient norm", ">update / weights")
    for row in rows:
        table.add_row(row["name"].lstrip("0") or "0", f"{row['grad_norm']:.2e}", f"{row['update_ratio']:.2e}")
    return table


def _preferences(rows: list[dict[str, Any]]) -> RenderableType:
    table = _table("", ">first tenth", ">last tenth", ">held out")
    for row in rows:
        shown = (_preference(row["name"], each) for each in (row["first"], row["last"], row["held_out"]))
        table.add_row((FIGURES | LEARNED)[row["name"]], *shown)
    return table


def _preference(name: str, value: float | None) -> str:
    """A figure, or its share where it is one."""
    if value is None:
        return ""
    return f"{value:.1%}" if name in SHARES else f"{value:.4g}"


def _rounds(rows: list[dict[str, Any]]) -> RenderableType:
    table = _table(">round", *(f">{title}" for title in ROUNDS.values()))
    for row in rows:
        table.add_row(str(row["round"]), *(_preference(name, row[name]) for name in ROUNDS))
    return table


def _evaluation(row: Row) -> list[str]:
    """The scores of each task on a line of their own, with their intervals."""
    scores = row.get("scores")
    if not isinstance(scores, dict):
        return [_line(_fields(row))]
    lines = []
    for task, found in scores.items():
        told = [
            f"{name} {each['value']:.4g} ({each['low']:.4g} to {each['high']:.4g})"
            for name, each in found.items()
            if isinstance(each, dict)
            and all(isinstance(each.get(key), float | int) for key in ("value", "low", "high"))
        ]
        lines.append(_line(f"step {row.get('step', '?')}  {task}  " + "  ".join(told)))
    return lines


def _table(*columns: str) -> Table:
    """A table without borders; `>` in front of a title aligns its column to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(Text(column.removeprefix(">")), justify="right" if column.startswith(">") else "left")
    return table


def _pairs(rows: list[tuple[str, str]]) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column()
    grid.add_column(justify="right")
    for name, value in rows:
        grid.add_row(name, value)
    return grid


def _line(text: str, style: str = "default") -> str:
    return f"[{style}]{escape(plain(text))}[/{style}]"


def _warning(row: Row) -> str:
    """A warning with its code and message, or whatever fields an event has."""
    if "message" not in row:
        return _fields(row)
    return f"{row.get('code', row.get('event'))} at step {row.get('step', '?')}: {row['message']}"


def _title(text: str) -> str:
    return f"\n[bold]{text}[/bold]"


def _state(state: str, reason: str) -> Text:
    mark, style = LOOKS[state]
    return Text.assemble((f"{mark} {state}", style), (f"  {plain(reason)}" if reason else "", "dim"))


def _fields(row: Row) -> str:
    return "  ".join(f"{key} {_short(value)}" for key, value in row.items() if key not in ("wall", "attempt"))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
