"""LISA (arXiv:2403.17919, algorithm 1): a few layers at a time are trained, drawn anew every so many steps."""

from __future__ import annotations

import numpy as np
from torch import nn

from tunesmith.models.changing_config import LisaConfig
from tunesmith.train.optimizer import Optimizer
from tunesmith.train.optimizers.base import layer_of
from tunesmith.train.tuning import Make, Tuning


class Lisa(Tuning):
    """Trains what stands outside the layers all the time, and of the layers those that are drawn.

    A draw follows from the seed and its number alone. Layers that stay keep the optimiser's state, others lose it, and
    with it the fp32 master of weights below fp32.
    """

    def __init__(self, settings: LisaConfig, seed: int) -> None:
        self.settings = settings
        self.seed = seed
        self.parameters: dict[str, nn.Parameter] = {}
        self.depth = 0
        self.number = 0  # of the present draw
        self.drawn: frozenset[int] = frozenset()

    def start(self, parameters: dict[str, nn.Parameter], make: Make) -> Optimizer:
        self.parameters, self.make = parameters, make
        self.depth = 1 + max(layer for name in parameters if (layer := layer_of(name)) is not None)
        return self.renewed(0)

    def draw(self, number: int) -> frozenset[int]:
        """The layers of the draw of this number."""
        chance = np.random.default_rng((self.seed, number))
        return frozenset(chance.choice(self.depth, self.settings.layers, replace=False).tolist())

    def before(self, step: int, optimizer: Optimizer) -> Optimizer:
        number = step // self.settings.every
        if number == self.number:
            return optimizer
        optimizer.release()
        kept = optimizer.state() if number == self.number + 1 else {}  # else all comes from a checkpoint
        renewed = self.renewed(number)
        for held in renewed.held.values():
            held.begin(step)
        renewed.restore({name: value for name, value in kept.items() if name.rpartition(".")[0] in renewed.parameters})
        optimizer.close()
        return renewed

    def renewed(self, number: int) -> Optimizer:
        """An optimiser of the parameters that are trained from now on; the others want no gradient."""
        self.number, self.drawn = number, self.draw(number)
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(self.is_trained(name))
        return self.make({name: each for name, each in self.parameters.items() if each.requires_grad})

    def is_trained(self, name: str) -> bool:
        layer = layer_of(name)
        return layer is None or layer < 0 or layer in self.drawn
