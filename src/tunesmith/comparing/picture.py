"""The comparison as one PNG: what each method learned, beside what it forgot and what it took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.comparing.rows import Row, front
from tunesmith.errors import Fix, MachineError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, GRID, BLUE, GREY = "#1f2933", "#9aa5b1", "#e4e7eb", "#2563eb", "#9aa5b1"


def draw(rows: Sequence[Row], path: Path) -> Path:
    """Write the picture; MachineError E172 without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        fix = Fix("install matplotlib", command="pip install matplotlib")
        raise MachineError("E172", "plots need matplotlib, which is not installed", fixes=[fix]) from error
    figure = Figure(figsize=(12, 5.2), dpi=120, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    shown = [row for row in rows if row.trained and row.score is not None]
    metric = (shown[0].metric or "score").replace("_", " ") if shown else "score"
    scatter(left, shown, lambda row: row.forgotten, "rise of the loss on general data", metric)
    scatter(
        right, shown, lambda row: None if row.peak_bytes is None else row.peak_bytes / 1e9, "peak memory, GB", metric
    )
    canvas.print_png(str(path))
    return path


def scatter(axes: Axes, rows: Sequence[Row], across: Callable[[Row], float | None], title: str, metric: str) -> None:
    """A point for each method, the better ones to the upper left; those that none beats are blue."""
    best = front(rows)
    points = [(row, x, 100 * row.score) for row in rows if (x := across(row)) is not None and row.score is not None]
    for row, x, y in points:
        color = BLUE if row.name in best else GREY
        axes.scatter([x], [y], s=46, color=color, zorder=3)
        axes.annotate(row.name, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8.5, color=INK)
    edge = sorted((x, y) for _, x, y in points)
    highest = [(x, y) for index, (x, y) in enumerate(edge) if all(y > other for _, other in edge[:index])]
    axes.step([x for x, _ in highest], [y for _, y in highest], where="post", color=BLUE, alpha=0.35, linewidth=1.4)
    axes.set_xlabel(title, color=INK, fontsize=9.5)
    axes.set_ylabel(f"{metric}, %", color=INK, fontsize=9.5)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.12, y=0.1)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
