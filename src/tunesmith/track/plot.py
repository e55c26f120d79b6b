"""The curves of a run as one PNG: loss, learning rate, speed, gradient norm, and how preferences developed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import Fix, MachineError, UsageError, Where
from tunesmith.track.preferences import MARGIN
from tunesmith.track.reader import RESUME, Row, read_lines, read_metrics, series
from tunesmith.track.run_dir import RunDir

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, GRID = "#1f2933", "#9aa5b1", "#e4e7eb"
BLUE, ORANGE, GREEN, PURPLE = "#2563eb", "#ea580c", "#059669", "#7c3aed"


def plot_run(run: RunDir, out: Path | None = None) -> Path:
    """Write `plot.png` into the run's directory (or `out`) and return its path.

    MachineError E172 without matplotlib, UsageError E196 when no step was written yet.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        fix = Fix("install matplotlib", command="pip install matplotlib")
        raise MachineError("E172", "plots need matplotlib, which is not installed", fixes=[fix]) from error
    rows = read_metrics(run.metrics_file)
    if not series(rows, "train/loss")[0]:
        where = Where(str(run.metrics_file))
        raise UsageError("E196", "there is nothing to plot: no step was written yet", where=where)
    preferences = bool(series(rows, MARGIN)[0])
    lines = 4 if preferences else 2
    figure = Figure(figsize=(11, 3.2 * lines), dpi=120, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes: list[Axes] = list(figure.subplots(lines, 2).flat)
    resumes = [row["step"] for row in read_lines(run.metrics_file) if row.get("event") == RESUME]
    _loss(axes[0], rows)
    _line(axes[1], rows, "train/lr", "learning rate", GREEN)
    _line(axes[2], rows, "perf/tok_s", "tokens per second", PURPLE, smooth=True)
    _line(axes[3], rows, "train/grad_norm", "gradient norm", BLUE, smooth=True)
    if preferences:
        _preferences(axes[4:], rows)
    for each in axes:
        _dress(each, resumes)
    for each in (axes[0], *axes[4:]):
        each.legend(frameon=False, labelcolor=INK, fontsize=9)
    figure.suptitle(run.id, x=0.01, ha="left", color=INK, fontsize=13, fontweight="bold")
    path = out or run.path / "plot.png"
    canvas.print_png(str(path))
    return path


def smoothed(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average, corrected at the start (Adam's bias correction); gaps (NaN) are left out."""
    total = held = 0.0
    found: list[float] = []
    for value in values:
        if value - value == 0.0:  # neither NaN nor infinite
            total = weight * total + (1 - weight) * value
            held = weight * held + (1 - weight)
        found.append(total / held if held else float("nan"))
    return found


def _loss(axes: Axes, rows: list[Row]) -> None:
    _line(axes, rows, "train/loss", "loss", BLUE, smooth=True)
    steps, values = series(rows, "eval/loss")
    if steps:
        axes.plot(steps, values, color=ORANGE, marker="o", markersize=4, linewidth=1.2, label="evaluation")


def _preferences(axes: list[Axes], rows: list[Row]) -> None:
    """Margin, accuracy, and both answers apart: a margin that grows while both fall is displaced likelihood."""
    _line(axes[0], rows, MARGIN, "reward margin", BLUE, smooth=True)
    _line(axes[1], rows, "train/rewards/accuracy", "pairs told apart", GREEN, smooth=True)
    for each, name in ((axes[0], "eval/rewards/margin"), (axes[1], "eval/rewards/accuracy")):
        steps, values = series(rows, name)
        if steps:
            each.plot(steps, values, color=ORANGE, marker="o", markersize=4, linewidth=1.2, label="evaluation")
    for each, group, title in ((axes[2], "logps", "log-probability"), (axes[3], "rewards", "reward")):
        each.set_title(f"{title} of both answers", loc="left", color=INK, fontsize=10.5)
        for kind, color in (("chosen", GREEN), ("rejected", ORANGE)):
            steps, values = series(rows, f"train/{group}/{kind}")
            each.plot(steps, smoothed(values), color=color, linewidth=1.9, label=kind)


def _line(axes: Axes, rows: list[Row], name: str, title: str, color: str, *, smooth: bool = False) -> None:
    steps, values = series(rows, name)
    axes.set_title(title, loc="left", color=INK, fontsize=10.5)
    if not steps:
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color=FAINT)
        return
    dot = "o" if len(steps) == 1 else None
    if smooth and len(steps) > 2:
        axes.plot(steps, values, color=color, alpha=0.28, linewidth=1.0)
        axes.plot(steps, smoothed(values), color=color, linewidth=1.9, label="training, smoothed")
    else:
        axes.plot(steps, values, color=color, linewidth=1.9, marker=dot, label="training")


def _dress(axes: Axes, resumes: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.set_axisbelow(True)
    axes.grid(color=GRID, linewidth=0.8)
    axes.margins(x=0.02)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step", color=FAINT, fontsize=9)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    for index, step in enumerate(resumes):
        axes.axvline(step, color=FAINT, linestyle=":", linewidth=1.2, label=None if index else "resumed")
