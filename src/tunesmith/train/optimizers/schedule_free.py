"""Schedule-free AdamW (arXiv:2405.15682): an average of the iterates takes the place of a falling rate."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tunesmith.train.optimizers.base import AdamConfig, Averaging, Group, State, counted, numbers


class ScheduleFree(AdamConfig):
    name: Literal["schedule_free"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="schedule_free",
        description="AdamW whose result is an average of its iterates (arXiv:2405.15682); wants a constant rate.",
    )
    beta1: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.9, description="Share of the average in the point where gradients are taken."
    )

    def build(self, groups: list[Group]) -> list[torch.optim.Optimizer]:
        return [ScheduleFreeRule(groups, self)]

    def state_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        return 8 * numbers(shape)


class ScheduleFreeRule(Averaging):
    """Parameters are y = (1 - beta1) z + beta1 x; z is kept, and the average x follows from both.

    The rate includes the correction of the mean of squares, and its square is an iterate's weight in the average.
    """

    def __init__(self, groups: list[Group], settings: ScheduleFree) -> None:
        super().__init__(groups)
        self.settings = settings

    def update(self, name: str, parameter: nn.Parameter, state: State, group: Group) -> None:
        gradient, settings = parameter.grad, self.settings
        assert gradient is not None
        rate = group["lr"] * math.sqrt(1 - settings.beta2 ** counted(state))
        if "z" not in state:
            state["z"] = parameter.detach().clone()
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["weight"] = torch.zeros((), dtype=torch.float64)
        squares, z = state["exp_avg_sq"], state["z"]
        average = self.average(parameter)
        squares.mul_(settings.beta2).addcmul_(gradient, gradient, value=1 - settings.beta2)
        if group["weight_decay"]:
            z.add_(parameter, alpha=-rate * group["weight_decay"])
        z.addcdiv_(gradient, squares.sqrt().add_(settings.eps), value=-rate)
        state["weight"] += rate**2
        total = state["weight"].item()
        share = rate**2 / total if total > 0 else 0.0
        parameter.copy_(average.lerp_(z, share).lerp_(z, 1 - settings.beta1))

    def average(self, parameter: nn.Parameter) -> Tensor:
        state = self.state.get(parameter)
        if not state or "z" not in state:
            return parameter.detach().clone()
        return parameter.detach().lerp(state["z"], 1 - 1 / self.settings.beta1)
