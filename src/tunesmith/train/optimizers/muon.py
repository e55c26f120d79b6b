"""Muon: the momentum of a hidden matrix made orthogonal, by torch; AdamW for everything else."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from tunesmith.train.optimizers.base import AdamConfig, Group, Share, is_hidden, numbers, split


class Muon(AdamConfig):
    name: Literal["muon"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="muon",
        description="Orthogonal updates of matrices in layers, sized like AdamW's (arXiv:2502.16982); AdamW for the "
        "rest.",
    )
    momentum: Share = Field(default=0.95, description="Decay of the mean of a matrix' gradients.")
    nesterov: bool = Field(default=True, description="Mix the gradient into the momentum once more.")
    iterations: Annotated[int, Field(ge=1, le=99)] = Field(
        default=5, description="Newton-Schulz iterations towards an orthogonal matrix."
    )

    def build(self, groups: list[Group]) -> list[torch.optim.Optimizer]:
        hidden, others = split(groups, is_hidden)
        if not hidden:
            return self.adamw(others)
        muon = torch.optim.Muon(
            hidden,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_steps=self.iterations,
            adjust_lr_fn="match_rms_adamw",
        )
        return [muon, *self.adamw(others)]

    def state_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        return (4 if is_hidden(name, shape) else 8) * numbers(shape)
