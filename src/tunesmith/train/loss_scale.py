"""The dynamic loss scale of fp16: gradients are kept within its range, and steps beyond it are left out."""

from __future__ import annotations

import math
from typing import Any

from tunesmith.train.config import LossScaleConfig

SMALLEST = 1.0  # below it the gradient itself does not fit, which is no matter of scale


class LossScale:
    """The factor on the loss (arXiv:1710.03740 section 3.2): halved when a gradient overflows, doubled after a while.

    Powers of two by default, so that dividing by them rounds nothing.
    """

    def __init__(self, settings: LossScaleConfig) -> None:
        self._settings = settings
        self.value = settings.initial
        self.overflows = 0
        self._good = 0  # steps in a row

    def overflowed(self, loss: float, grad_norm: float) -> bool:
        """Take note of a step that all ranks judge alike; whether it must be left out, for its scale and nothing else.

        A loss that is not finite came so out of the forward pass, where no scale helps.
        """
        if not math.isfinite(loss):
            return False
        if math.isfinite(grad_norm):
            self._good += 1
            if self._good == self._settings.every:
                self.value, self._good = self.value * self._settings.growth, 0
            return False
        if self.value <= SMALLEST:
            return False
        self.value = max(SMALLEST, self.value * self._settings.backoff)
        self.overflows, self._good = self.overflows + 1, 0
        return True

    def metrics(self) -> dict[str, float]:
        return {"train/loss_scale": self.value, "train/overflows": float(self.overflows)}

    def state(self) -> dict[str, Any]:
        """JSON-able and exact."""
        return {"value": self.value.hex(), "overflows": self.overflows, "good": self._good}

    def restore(self, state: dict[str, Any]) -> None:
        self.value = float.fromhex(state["value"])
        self.overflows, self._good = state["overflows"], state["good"]
