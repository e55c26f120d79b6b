"""A pull back to the weights at the start: L2-SP (arXiv:1802.01483), decoupled from the optimiser's means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunesmith.train.optimizer import Optimizer


@dataclass(frozen=True, slots=True)
class Factors:
    """An update W + scale * B A by its factors, as names of trained parameters or as tensors that stay."""

    a: str | Tensor
    b: str | Tensor
    scale: float


class Pull:
    """A step down c / 2 ||W - W0||² at each parameter's own rate, beside the optimiser's: w <- w - rate c (w - w0).

    Of factors it is the update itself that is drawn to 0: B <- B - rate c s² B A A^T and A <- A - rate c s² B^T B A.
    """

    def __init__(self, optimizer: Optimizer, strength: float, factors: Sequence[Factors] = ()) -> None:
        self.optimizer = optimizer
        self.strength = strength
        self.factors = tuple(factors)
        inside = {name for pair in factors for name in (pair.a, pair.b) if isinstance(name, str)}
        masters = optimizer.masters
        self.start = {name: masters[name].detach().clone() for name in masters if name not in inside}

    @torch.no_grad()
    def apply(self) -> float:
        """Draw everything a little nearer; returns how far ||W - W0|| it was before. Call it before the update."""
        rates, masters, square = self.rates(), self.optimizer.masters, 0.0
        for name, start in self.start.items():
            away = masters[name] - start
            square += float(away.square().sum())
            masters[name].sub_(away, alpha=rates[name] * self.strength)
        for pair in self.factors:
            square += self.draw(pair, rates)
        return math.sqrt(square)

    def draw(self, pair: Factors, rates: Mapping[str, float]) -> float:
        """One update's factors; returns its squared size."""
        a, b = (self.optimizer.masters[one] if isinstance(one, str) else one.float() for one in (pair.a, pair.b))
        across, down = a @ a.T, b.T @ b
        strength = self.strength * pair.scale**2
        moves = [(pair.b, b, b @ across), (pair.a, a, down @ a)]
        for name, factor, slope in moves:
            if isinstance(name, str):
                factor.sub_(slope, alpha=rates[name] * strength)
        return pair.scale**2 * float((across * down).sum())

    def rates(self) -> dict[str, float]:
        """The learning rate of every parameter in this step."""
        names = {id(master): name for name, master in self.optimizer.masters.items()}
        steppers = set(self.optimizer.steppers.values())
        return {
            names[id(member)]: group["lr"]
            for stepper in steppers
            for group in stepper.param_groups
            for member in group["params"]
        }
