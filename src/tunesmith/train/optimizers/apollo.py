"""APOLLO (arXiv:2412.05270 algorithm 1): channels of the gradient scaled as Adam would in a random projection."""

from __future__ import annotations

import math
import zlib
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tunesmith.train.optimizers.base import Group, State, numbers
from tunesmith.train.optimizers.low_rank import LowRankConfig, LowRankRule

LIMIT = 1.01  # largest growth of an update's norm from step to step
TINY = 1e-8


class Apollo(LowRankConfig):
    name: Literal["apollo"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="apollo",
        description="Gradients scaled by channel as AdamW would in a random projection (arXiv:2412.05270); for full "
        "tuning.",
    )
    scaling: Literal["channel", "tensor"] = Field(
        default="channel", description="One factor for each row or column of the longer side, or one for the matrix."
    )
    scale: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="Times the update of a projected matrix; with rank 1 and tensor about 11."
    )

    def rule(self, groups: list[Group]) -> LowRankRule:
        return ApolloRule(groups, self)

    def state_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        return self.moment_bytes(shape) if self.projects(name, shape) else 8 * numbers(shape)


class ApolloRule(LowRankRule):
    """The projection is not kept but drawn again, from the parameter's name and how often it has changed."""

    settings: Apollo

    def projection(self, name: str, gradient: Tensor, state: State, step: int) -> Tensor:
        rank, short = self.settings.rank, min(gradient.shape)
        seed = zlib.crc32(f"{name} {(step - 1) // self.settings.every}".encode())
        drawn = torch.randn(short, rank, generator=torch.Generator().manual_seed(seed))
        return drawn.div_(math.sqrt(rank)).to(gradient.device)

    def lifted(self, gradient: Tensor, projection: Tensor, low: Tensor, direction: Tensor, state: State) -> Tensor:
        side = 0 if gradient.shape[0] <= gradient.shape[1] else 1  # the projected one
        if self.settings.scaling == "channel":
            factors = direction.norm(dim=side, keepdim=True) / (low.norm(dim=side, keepdim=True) + TINY)
        else:
            factors = direction.norm() / (low.norm() + TINY)
        update = gradient * factors
        norm = update.norm()
        if "norm" in state:
            update.mul_((LIMIT * state["norm"] / (norm + TINY)).clamp(max=1.0))
            norm = update.norm()
        state["norm"] = norm
        return update.mul_(self.settings.scale)
