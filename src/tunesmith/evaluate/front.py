"""Who beats whom: points of which smaller is better in every figure, and those that no other one beats."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether `one` is nowhere larger and somewhere smaller."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def unbeaten(points: Mapping[Name, tuple[float, ...]]) -> tuple[Name, ...]:
    """The Pareto front, in the order given; of equal points all are on it or none."""
    return tuple(name for name, point in points.items() if not any(beats(other, point) for other in points.values()))
