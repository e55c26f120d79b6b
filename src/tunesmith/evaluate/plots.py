"""Plots as SVG inside a page: values with their intervals, one line for each; colours are those of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

ROW, LEFT, WIDTH, RIGHT, TOP = 22, 210, 430, 110, 26
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Mark:
    """A value with its interval; `style` is a class of the page's style sheet."""

    label: str
    value: float
    low: float
    high: float
    told: str
    style: str


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from low to high, at most `most` of them."""
    span = max(high - low, 1e-9)
    power = 10.0 ** (len(f"{int(span / most)}") - 1) if span / most >= 1 else 1.0
    while power > span / most:
        power /= 10
    step = next(power * size for size in STEPS if span / (power * size) <= most - 1 or size == STEPS[-1])
    first = int(low / step) - 1
    places = [step * at for at in range(first, first + 4 * most)]
    return [round(place, 12) for place in places if low - 1e-9 * span <= place <= high + 1e-9 * span]


def interval_plot(title: str, marks: Sequence[Mark], *, zero: bool, bounds: tuple[float, float] | None = None) -> str:
    """One line per mark, a dot with its interval; `zero` draws the line of no change."""
    ends = [end for mark in marks for end in (mark.low, mark.high, mark.value) if end == end]
    low, high = bounds or (min(ends), max(ends))
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if bounds is None:
        room = 0.06 * (high - low) or 1.0
        low, high = low - room, high + room
    total = LEFT + WIDTH + RIGHT
    height = TOP + ROW * len(marks) + 8

    def x(value: float) -> str:
        return f"{LEFT + WIDTH * (min(max(value, low), high) - low) / (high - low):.1f}"

    parts = [f'<svg viewBox="0 0 {total} {height}" role="img" aria-label="{escape(title)}">']
    for tick in ticks(low, high):
        kind = "axis" if zero and tick == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{x(tick)}" x2="{x(tick)}" y1="{TOP - 6}" y2="{height - 8}"/>')
        parts.append(f'<text class="tick" x="{x(tick)}" y="{TOP - 11}" text-anchor="middle">{tick:g}</text>')
    for at, mark in enumerate(marks):
        y = TOP + ROW * at + ROW // 2
        parts.append(f'<g class="{mark.style}"><title>{escape(f"{mark.label}: {mark.told}")}</title>')
        parts.append(
            f'<text class="label" x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(fit(mark.label))}</text>'
        )
        if mark.low == mark.low and mark.high == mark.high:
            parts.append(f'<line class="whisker" x1="{x(mark.low)}" x2="{x(mark.high)}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="dot" cx="{x(mark.value)}" cy="{y}" r="4.5"/>')
        parts.append(f'<text class="value" x="{LEFT + WIDTH + 10}" y="{y + 4}">{escape(mark.told)}</text></g>')
    return "".join((*parts, "</svg>"))


def fit(label: str, most: int = 32) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"
