"""Plots inside a page: values with their intervals, one line for each; colours and widths are those of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

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
    """One line per mark: its label, a dot with its interval, its value; `zero` draws the line of no change.

    Places are percentages of the width that is there, so that letters and dots have one size on every screen.
    """
    ends = [end for mark in marks for end in (mark.low, mark.high, mark.value) if end == end]
    low, high = bounds or (min(ends), max(ends))
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if bounds is None:
        room = 0.06 * (high - low) or 1.0
        low, high = low - room, high + room

    def x(value: float) -> str:
        return f"{100 * (min(max(value, low), high) - low) / (high - low):.2f}%"

    shown = ticks(low, high)
    kinds = ["axis" if zero and tick == 0 else "grid" for tick in shown]
    lines = "".join(
        f'<line class="{kind}" x1="{x(tick)}" x2="{x(tick)}" y1="0" y2="100%"/>'
        for kind, tick in zip(kinds, shown, strict=True)
    )
    numbers = "".join(f'<text class="tick" x="{x(tick)}" y="14" text-anchor="middle">{tick:g}</text>' for tick in shown)
    parts = [f'<div class="plot" role="group" aria-label="{escape(title)}"><div class="row scale">']
    parts.append(f'<span class="label"></span><div class="track"><svg>{numbers}</svg></div></div>')
    for mark in marks:
        whisker = ""
        if mark.low == mark.low and mark.high == mark.high:
            whisker = f'<line class="whisker" x1="{x(mark.low)}" x2="{x(mark.high)}" y1="50%" y2="50%"/>'
        dot = f'<circle class="dot" cx="{x(mark.value)}" cy="50%" r="4.5"/>'
        parts.append(f'<div class="row {mark.style}"><span class="label">{escape(mark.label)}</span>')
        parts.append(f'<div class="track"><svg aria-hidden="true">{lines}{whisker}{dot}</svg></div>')
        parts.append(f'<span class="value">{escape(mark.told)}</span></div>')
    return "".join((*parts, "</div>"))
