"""AdamW (arXiv:1711.05101): torch's."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from tunesmith.train.optimizers.base import AdamConfig, Group, State, blank_means, numbers
from tunesmith.train.optimizers.unified import UnifiedAdamW, is_unified


class AdamW(AdamConfig):
    name: Literal["adamw"] = Field(default="adamw", description="AdamW with decoupled decay (arXiv:1711.05101).")  # pyright: ignore[reportIncompatibleVariableOverride]

    def build(self, groups: list[Group]) -> list[torch.optim.Optimizer]:
        return [UnifiedAdamW(groups, self, 32)] if is_unified(self, groups) else self.adamw(groups)

    def blank(self, name: str, shape: tuple[int, ...]) -> State:
        return blank_means(shape)

    def state_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        return 8 * numbers(shape)
