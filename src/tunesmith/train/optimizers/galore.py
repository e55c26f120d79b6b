"""GaLore (arXiv:2403.03507 algorithm 2): Adam in the leading directions of each matrix' gradient."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tunesmith.train.optimizers.base import Group, Rate, State, numbers
from tunesmith.train.optimizers.low_rank import LowRankConfig, LowRankRule


class GaLore(LowRankConfig):
    rate_scale: ClassVar[float | None] = 4.0

    name: Literal["galore"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="galore",
        description="AdamW in the leading directions of each matrix' gradient (arXiv:2403.03507); for full tuning.",
    )
    lr: Rate = Field(default=8e-5, description="Peak learning rate; matrices learn at `scale` times it.")
    scale: Annotated[float, Field(gt=0)] = Field(default=0.25, description="Times the update of a projected matrix.")

    def rule(self, groups: list[Group]) -> LowRankRule:
        return GaLoreRule(groups, self)

    def state_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        if not self.projects(name, shape):
            return 8 * numbers(shape)
        return self.moment_bytes(shape) + 4 * self.rank * min(shape)


class GaLoreRule(LowRankRule):
    """The projection is kept; the means stay as they are when it changes."""

    settings: GaLore

    def projection(self, name: str, gradient: Tensor, state: State, step: int) -> Tensor:
        if (step - 1) % self.settings.every == 0:
            left, _, right = torch.linalg.svd(gradient, full_matrices=False)
            leading = left if gradient.shape[0] <= gradient.shape[1] else right.T
            state["projection"] = leading[:, : self.settings.rank].contiguous()
        return state["projection"]

    def lifted(self, gradient: Tensor, projection: Tensor, low: Tensor, direction: Tensor, state: State) -> Tensor:
        wide = gradient.shape[0] <= gradient.shape[1]
        return (projection @ direction if wide else direction @ projection.T).mul_(self.settings.scale)
