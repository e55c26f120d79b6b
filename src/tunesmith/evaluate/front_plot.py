"""Two figures of the same models against each other, with the front of those that none beats, inside a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from tunesmith.evaluate.plots import ticks


@dataclass(frozen=True, slots=True)
class Dot:
    """A place with the intervals of both its figures, each as value, low and high; more is better in both."""

    label: str
    across: tuple[float, ...]
    up: tuple[float, ...]
    front: bool
    chosen: bool


def front_plot(title: str, dots: Sequence[Dot]) -> str:
    """Every dot with its whiskers, those that none beats joined by steps; the axes stand at no change."""
    width, height, edge = 700, 420, 46

    def scaler(ends: Sequence[float], start: float, size: float) -> tuple[Callable[[float], float], list[float]]:
        low, high = min(*ends, 0.0), max(*ends, 0.0)
        room = 0.1 * (high - low) or 1.0
        low, high = low - room, high + room
        return lambda value: start + size * (value - low) / (high - low), ticks(low, high)

    x, across = scaler([end for dot in dots for end in dot.across], edge, width - 2 * edge)
    y, up = scaler([end for dot in dots for end in dot.up], height - edge, 2 * edge - height)
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    for tick in across:
        kind = "axis" if tick == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{edge}" y2="{height - edge}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{height - 28}" text-anchor="middle">{tick:g}</text>')
    for tick in up:
        kind = "axis" if tick == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{edge}" x2="{width - edge}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{edge - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(f'<text class="tick" x="{width - edge}" y="{height - 10}" text-anchor="end">general, % →</text>')
    parts.append(f'<text class="tick" x="{edge}" y="{edge - 14}">↑ learned, %</text>')
    joined = sorted((dot.across[0], -dot.up[0]) for dot in dots if dot.front)
    if len(joined) > 1:
        path = " ".join(f"V{y(-down):.1f}H{x(right):.1f}" for right, down in joined[1:])
        parts.append(f'<path class="front" d="M{x(joined[0][0]):.1f} {y(-joined[0][1]):.1f} {path}"/>')
    parts += [dot_part(dot, x, y) for dot in dots]
    return "".join((*parts, "</svg>"))


def dot_part(dot: Dot, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    """One dot, its whiskers and its name."""
    (kept, left, right), (learned, low, high) = dot.across, dot.up
    at = f'x1="{x(left):.1f}" x2="{x(right):.1f}" y1="{y(learned):.1f}" y2="{y(learned):.1f}"'
    upright = f'x1="{x(kept):.1f}" x2="{x(kept):.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}"'
    size, style = ("6.5", "dot chosen") if dot.chosen else ("4.5", "dot")
    told = escape(f"{dot.label}: learned {learned:+.1f} %, general {kept:+.1f} %")
    return (
        f'<g class="{"m1" if dot.front else "open"}"><title>{told}</title>'
        f'<line class="whisker" {at}/><line class="whisker" {upright}/>'
        f'<circle class="{style}" cx="{x(kept):.1f}" cy="{y(learned):.1f}" r="{size}"/>'
        f'<text x="{x(kept):.1f}" y="{y(learned) - 10:.1f}" text-anchor="middle">{escape(dot.label)}</text></g>'
    )
