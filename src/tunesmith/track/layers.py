"""What the figures of single layers say: which learn nothing, and whether updates have a usual size."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from tunesmith.errors import Diagnostic, Fix
from tunesmith.track.reader import Row, number

FIGURE = re.compile(r"layers/(\w+)/(grad_norm|update_ratio)")
DEAD = 1e-4  # of the median gradient of all layers
SMALLEST, LARGEST = 1e-7, 3e-2  # of updates beside weights; a usual one is 1e-3, of low rank up to 1e-2
FEWEST = 3  # looks below which nothing is said


@dataclass(frozen=True, slots=True)
class LayerCourse:
    """A layer's median gradient norm and update ratio over a run."""

    name: str
    grad_norm: float
    update_ratio: float
    looks: int

    def to_json(self) -> dict[str, float | str]:
        return {"name": self.name, "grad_norm": self.grad_norm, "update_ratio": self.update_ratio}


def layer_courses(rows: Iterable[Row]) -> list[LayerCourse]:
    """The layers that were watched, in order."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for key, content in row.items():
            match, value = FIGURE.fullmatch(key), number(content)
            if match and value is not None:
                found.setdefault(match[1], {"grad_norm": [], "update_ratio": []})[match[2]].append(value)
    return [
        LayerCourse(
            name=name,
            grad_norm=statistics.median(figures["grad_norm"]),
            update_ratio=statistics.median(figures["update_ratio"]),
            looks=len(figures["grad_norm"]),
        )
        for name, figures in sorted(found.items())
        if all(figures.values())
    ]


def layer_signs(rows: Iterable[Row], rate: float) -> list[Diagnostic]:
    """Layers that learn nothing, and updates that are far too large or too small; `rate` is the peak one."""
    layers = [layer for layer in layer_courses(rows) if layer.looks >= FEWEST]
    if not layers:
        return []
    still = [layer for layer in layers if layer.update_ratio == 0]
    usual = statistics.median(layer.grad_norm for layer in layers)
    dead = [layer for layer in layers if layer not in still and layer.grad_norm < DEAD * usual]
    return [*_still(still, len(layers)), *_dead(dead, usual), *_size(layers, rate)]


def _still(layers: list[LayerCourse], total: int) -> list[Diagnostic]:
    if not layers:
        return []
    without = [layer.name for layer in layers if layer.grad_norm == 0]
    evidence = [f"no update in {named(layers)}, of {total} that are trained"]
    evidence.append(
        f"no gradient either in {len(without)} of them: no loss reaches them" if without else "gradients do come"
    )
    fixes = (
        Fix("adapt layers that a loss reaches: leave model.adapter.targets at all", {"model.adapter.targets": ["all"]}),
        Fix("raise the rate, where weights are in bf16 or the rate is very small: tunesmith lr-find RECIPE"),
    )
    return [Diagnostic("W382", f"{len(layers)} layers did not change", "warning", None, tuple(evidence), fixes)]


def _dead(layers: list[LayerCourse], usual: float) -> list[Diagnostic]:
    if not layers:
        return []
    least = min(layer.grad_norm for layer in layers)
    evidence = (f"gradient norms down to {least:.1e} in {named(layers)}, {usual:.1e} in the layer in the middle",)
    last = Fix(
        "train the last layers alone: model.adapter.last=8", {"model.adapter.last": 8}, "the others learn nothing"
    )
    warmer = Fix("in a model from scratch, warm up longer: train.schedule.warmup=0.1", {"train.schedule.warmup": 0.1})
    return [
        Diagnostic("W383", f"{len(layers)} layers get hardly any gradient", "warning", None, evidence, (warmer, last))
    ]


def _size(layers: list[LayerCourse], rate: float) -> list[Diagnostic]:
    """Updates beside weights, where they say that the rate is out of its range."""
    middle = statistics.median(layer.update_ratio for layer in layers)
    if SMALLEST <= middle <= LARGEST or middle == 0:
        return []
    word, factor = ("large", 0.1) if middle > LARGEST else ("small", 10.0)
    evidence = (f"an update is {middle:.1e} of the weights in the layer in the middle", f"peak learning rate {rate:g}")
    proposed = float(f"{rate * factor:.1e}")
    fixes = (
        Fix(f"train.optimizer.lr={proposed:g}", {"train.optimizer.lr": proposed}, "the usual cause"),
        Fix("search a rate: tunesmith lr-find RECIPE"),
    )
    return [Diagnostic("W384", f"updates are {word} beside the weights", "warning", None, evidence, fixes)]


def named(layers: list[LayerCourse]) -> str:
    names = [layer.name.lstrip("0") or "0" for layer in layers]
    return "layers " + ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
