"""What GaLore and APOLLO share: which matrices are projected, and Adam's means of the projected gradient."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tunesmith.train.optimizers.adamw8bit import empty_moments, keep, moment_bytes, moved
from tunesmith.train.optimizers.base import AdamConfig, Group, Rule, State, counted, is_hidden, split


class LowRankConfig(AdamConfig):
    """Adam in a space of `rank` dimensions for matrices in layers that have more on both sides; AdamW for the rest."""

    rank: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=128, description="Dimensions that gradients are projected to; smaller matrices are not projected."
    )
    every: Annotated[int, Field(ge=1)] = Field(default=200, description="Steps between projections.")
    states: Literal["float32", "int8"] = Field(
        default="float32", description="Type of the means of projected gradients; int8: block by block."
    )

    def rule(self, groups: list[Group]) -> LowRankRule:
        """The rule for the matrices that are projected."""
        raise NotImplementedError

    def build(self, groups: list[Group]) -> list[torch.optim.Optimizer]:
        projected, others = split(groups, self.projects)
        return [*([self.rule(projected)] if projected else []), *self.adamw(others)]

    def projects(self, name: str, shape: tuple[int, ...]) -> bool:
        return is_hidden(name, shape) and min(shape) > self.rank

    def projected_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The shorter side becomes `rank`."""
        rows, columns = shape
        return (self.rank, columns) if rows <= columns else (rows, self.rank)

    def moment_bytes(self, shape: tuple[int, ...]) -> int:
        return moment_bytes(self.projected_shape(shape), self.states == "int8")


class LowRankRule(Rule):
    """Adam of a gradient that was projected; how that becomes an update is the algorithm's own."""

    def __init__(self, groups: list[Group], settings: LowRankConfig) -> None:
        super().__init__(groups)
        self.settings = settings

    def update(self, name: str, parameter: nn.Parameter, state: State, group: Group) -> None:
        gradient = parameter.grad
        assert gradient is not None
        is_new = not state
        step = counted(state)
        projection = self.projection(name, gradient, state, step)
        wide = gradient.shape[0] <= gradient.shape[1]
        low = projection.T @ gradient if wide else gradient @ projection
        if is_new:
            state |= self.empty(low)
        direction = self.direction(low, state, step)
        parameter.add_(self.lifted(gradient, projection, low, direction, state), alpha=-group["lr"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])

    def projection(self, name: str, gradient: Tensor, state: State, step: int) -> Tensor:
        """The matrix, shorter side by rank, that gradients are multiplied with."""
        raise NotImplementedError

    def lifted(self, gradient: Tensor, projection: Tensor, low: Tensor, direction: Tensor, state: State) -> Tensor:
        """The update in full size, from the projected gradient and Adam's direction for it."""
        raise NotImplementedError

    def empty(self, low: Tensor) -> State:
        if self.settings.states == "int8":
            return empty_moments(low)
        return {"exp_avg": torch.zeros_like(low), "exp_avg_sq": torch.zeros_like(low)}

    def direction(self, low: Tensor, state: State, step: int) -> Tensor:
        """Adam's, after its means have moved by the projected gradient."""
        settings = self.settings
        first, root_of_second = 1 - settings.beta1**step, math.sqrt(1 - settings.beta2**step)
        if settings.states == "float32":
            mean = state["exp_avg"].lerp_(low, 1 - settings.beta1)
            squares = state["exp_avg_sq"].mul_(settings.beta2).addcmul_(low, low, value=1 - settings.beta2)
            return mean / first / squares.sqrt().div_(root_of_second).add_(settings.eps)
        found = torch.empty_like(low, memory_format=torch.contiguous_format).view(-1)
        for part, mean, root in moved(low.reshape(-1), state, settings):
            found[part].view(mean.shape).copy_(mean / first / (root / root_of_second).add_(settings.eps))
            keep(state, part, mean, root)
        return found.view(low.shape)
