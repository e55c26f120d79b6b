"""AdamW (arXiv:1711.05101): torch's."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from tunesmith.train.optimizers.base import AdamConfig, Group, numbers


class AdamW(AdamConfig):
    name: Literal["adamw"] = Field(default="adamw", description="AdamW with decoupled decay (arXiv:1711.05101).")  # pyright: ignore[reportIncompatibleVariableOverride]

    def build(self, groups: list[Group]) -> list[torch.optim.Optimizer]:
        return self.adamw(groups)

    def state_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        return 8 * numbers(shape)
