"""Adafactor (arXiv:1804.04235): torch's; a matrix has means of squares by row and by column."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from tunesmith.train.optimizers.base import Group, OptimizerConfig, Rate, numbers


class Adafactor(OptimizerConfig):
    rate_scale: ClassVar[float | None] = None

    name: Literal["adafactor"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="adafactor", description="Squares by row and column, rates relative to weights (arXiv:1804.04235)."
    )
    lr: Rate = Field(
        default=1e-2,
        description="Peak learning rate, times the size of the weights (their root mean square, or scale_floor).",
    )
    beta2_decay: Annotated[float, Field(ge=-1, le=0)] = Field(
        default=-0.8, description="The mean of squares forgets by 1 - step to this power."
    )
    scale_floor: Annotated[float, Field(ge=0)] = Field(
        default=1e-3, description="Least size of weights that rates are relative to; B of LoRA begins there."
    )
    clip: Annotated[float, Field(ge=1)] = Field(default=1.0, description="Largest root mean square of an update.")

    def build(self, groups: list[Group]) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.Adafactor(
                groups, lr=self.lr, beta2_decay=self.beta2_decay, eps=(None, self.scale_floor), d=self.clip
            )
        ]

    def state_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        if len(shape) < 2:
            return 4 * numbers(shape)
        return 4 * (numbers(shape[:-1]) + numbers((*shape[:-2], shape[-1])))
