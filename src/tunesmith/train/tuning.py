"""What a way of tuning does around the steps, besides the update itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from tunesmith.train.optimizer import Optimizer
from tunesmith.train.step import StepResult

Make = Callable[[dict[str, nn.Parameter]], Optimizer]


class Tuning:
    """This one does nothing more; others override what they need.

    `state` must be enough, with the weights and the state of the optimiser, to go on to the bit.
    """

    def start(self, parameters: dict[str, nn.Parameter], make: Make) -> Optimizer:
        """The optimiser of the first step; `parameters` are all that the run may train."""
        return make(parameters)

    def before(self, step: int, optimizer: Optimizer) -> Optimizer:
        """The optimiser of the step that follows `step` finished ones; on resume before all is restored."""
        return optimizer

    def weigh(self, result: StepResult, optimizer: Optimizer) -> StepResult:
        """Add gradients of its own, already the same on all ranks, to those of the losses, and tell of them."""
        return result

    def after(self, step: int, optimizer: Optimizer) -> None:
        """Look at weights and gradients after the update that made `step` steps."""

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint; empty where nothing is remembered."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over such a state."""
