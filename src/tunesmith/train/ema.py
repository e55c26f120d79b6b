"""An average of the weights on their way, in which later ones count more."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tunesmith.train.config import EmaConfig


class Average:
    """Follows fp32 masters; `values` are the weights to use."""

    def __init__(self, masters: Mapping[str, Tensor], settings: EmaConfig) -> None:
        self.settings = settings
        self.masters = masters
        self.values = {name: master.detach().clone() for name, master in masters.items()}

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Average <- d * average + (1 - d) * weights; d grows to `decay`, so that the start is forgotten soon."""
        decay = self.settings.decay
        if self.settings.ramp:
            decay = min(decay, (1 + step) / (10 + step))
        for name, master in self.masters.items():
            self.values[name].lerp_(master.detach(), 1 - decay)
