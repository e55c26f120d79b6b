"""Lion (arXiv:2302.06675 algorithm 2): the sign of a mean of gradients, one state per parameter."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from tunesmith.train.optimizers.base import Group, OptimizerConfig, Rate, Rule, Share, State, numbers


class Lion(OptimizerConfig):
    rate_scale: ClassVar[float | None] = 0.2

    name: Literal["lion"] = Field(default="lion", description="The sign of a mean of gradients (arXiv:2302.06675).")  # pyright: ignore[reportIncompatibleVariableOverride]
    lr: Rate = Field(default=4e-5, description="Peak learning rate, 3 to 10 times lower than AdamW's.")
    weight_decay: Share = Field(
        default=0.0, description="Decoupled weight decay of matrices, 3 to 10 times higher than AdamW's."
    )
    beta1: Share = Field(default=0.9, description="Share of the mean in the update; the rest is the gradient.")
    beta2: Share = Field(default=0.99, description="Decay of the mean of gradients.")

    def build(self, groups: list[Group]) -> list[torch.optim.Optimizer]:
        return [LionRule(groups, self)]

    def state_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        return 4 * numbers(shape)


class LionRule(Rule):
    def __init__(self, groups: list[Group], settings: Lion) -> None:
        super().__init__(groups)
        self.settings = settings

    def update(self, name: str, parameter: nn.Parameter, state: State, group: Group) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
        mean = state["exp_avg"]
        direction = mean.lerp(gradient, 1 - self.settings.beta1).sign_()
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
        mean.lerp_(gradient, 1 - self.settings.beta2)
