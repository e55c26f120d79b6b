"""Adam-mini (arXiv:2406.16793 algorithm 2): AdamW with one mean of squares for each block of a tensor."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import nn

from tunesmith.train.optimizers.base import (
    FACTOR_A,
    AdamConfig,
    Group,
    Rule,
    State,
    counted,
    numbers,
)

QUERY_OR_KEY = re.compile(r"\.(q_proj|k_proj|query|key|q_lin|k_lin)\.")


class AdamMini(AdamConfig):
    name: Literal["adam_mini"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="adam_mini",
        description="AdamW with one mean of squares per head, neuron or word (arXiv:2406.16793): half the states.",
    )
    head_width: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Rows of one head in query and key matrices; empty: as the model has them."
    )

    def for_heads(self, width: int) -> Self:
        return self if self.head_width is not None else self.model_copy(update={"head_width": width})

    def build(self, groups: list[Group]) -> list[torch.optim.Optimizer]:
        return [AdamMiniRule(groups, self)]

    def state_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        return 4 * (numbers(shape) + self.blocks(name, shape))

    def blocks(self, name: str, shape: tuple[int, ...]) -> int:
        """How many parts, one after the other, share a mean of squares each.

        Queries and keys: a head. Other matrices: a row, which is an output neuron, or a word of embedding and head.
        Norms and biases are one block.
        """
        if len(shape) < 2:
            return 1
        rows, width = numbers(shape[:-1]), self.head_width
        by_head = width is not None and rows % width == 0 and QUERY_OR_KEY.search(name) and not FACTOR_A.search(name)
        return rows // width if by_head and width is not None else rows


class AdamMiniRule(Rule):
    def __init__(self, groups: list[Group], settings: AdamMini) -> None:
        super().__init__(groups)
        self.settings = settings

    def update(self, name: str, parameter: nn.Parameter, state: State, group: Group) -> None:
        gradient, settings = parameter.grad, self.settings
        assert gradient is not None
        step = counted(state)
        if "exp_avg" not in state:
            blocks = settings.blocks(name, tuple(parameter.shape))
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
            state["exp_avg_sq"] = parameter.new_zeros(blocks)
        mean, squares = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(gradient, 1 - settings.beta1)
        squares.lerp_(gradient.reshape(len(squares), -1).square().mean(1), 1 - settings.beta2)
        rate = group["lr"] / (1 - settings.beta1**step)
        sizes = squares.sqrt().div_(math.sqrt(1 - settings.beta2**step)).add_(settings.eps)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.view(len(squares), -1).addcdiv_(mean.view(len(squares), -1), sizes[:, None], value=-rate)
