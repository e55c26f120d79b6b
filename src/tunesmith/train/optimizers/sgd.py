"""Stochastic gradient descent with momentum: torch's."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from tunesmith.train.optimizers.base import Group, OptimizerConfig, Rate, Share, numbers


class SGD(OptimizerConfig):
    rate_scale: ClassVar[float | None] = None

    name: Literal["sgd"] = Field(default="sgd", description="Gradient descent with momentum: one state or none.")  # pyright: ignore[reportIncompatibleVariableOverride]
    lr: Rate = Field(default=0.1, description="Peak learning rate, in units of the gradient.")
    weight_decay: Share = Field(default=0.0, description="Added to the gradient of matrices, not decoupled.")
    momentum: Share = Field(default=0.9, description="Share of the last update that is kept; 0: no state at all.")
    nesterov: bool = Field(default=False, description="Look ahead along the momentum; needs momentum.")

    def build(self, groups: list[Group]) -> list[torch.optim.Optimizer]:
        # not fused: that one leaves the momentum undefined when its first gradient is not finite
        return [
            torch.optim.SGD(
                groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov and self.momentum > 0, foreach=True
            )
        ]

    def state_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        return 4 * numbers(shape) if self.momentum else 0
