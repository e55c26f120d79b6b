"""Losses on each answer's own reward, which say whether its likelihood rises or falls, not only the margin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from tunesmith.objectives.logratios import (
    BCO_MEAN,
    BCO_SHIFT,
    ReferencedPairs,
    apo_zero_bad,
    apo_zero_good,
    bco_bad,
    bco_good,
    running_shift,
)
from tunesmith.objectives.pairs import REFERENCE_METRICS, ReferencedObjective
from tunesmith.types import Context


class NCA(ReferencedObjective):
    """Noise-contrastive alignment on pairs: lifts the chosen answer against both (arXiv:2402.05369)."""

    name: Literal["nca"] = Field(default="nca", description="Noise-contrastive: keeps the chosen answer from falling.")
    paper: ClassVar[str] = "arXiv:2402.05369"

    def losses(self, pairs: ReferencedPairs, context: Context) -> Float[Tensor, " P"]:
        return nca(self.beta * pairs.chosen_ratio_P, self.beta * pairs.rejected_ratio_P)

    def start_loss(self) -> float | None:
        return 2 * math.log(2)


class SPPO(ReferencedObjective):
    """Self-play preference optimisation with win probability 1 (arXiv:2405.00675 eq. 4.7)."""

    name: Literal["sppo"] = Field(default="sppo", description="Squared distance of each log-ratio from +-1 / (2 beta).")
    paper: ClassVar[str] = "arXiv:2405.00675"

    def losses(self, pairs: ReferencedPairs, context: Context) -> Float[Tensor, " P"]:
        return sppo(pairs.chosen_ratio_P, pairs.rejected_ratio_P, self.beta)

    def start_loss(self) -> float | None:
        return 1 / (2 * self.beta**2)


class APOZero(ReferencedObjective):
    """Anchored preference optimisation: the chosen answer up, the rejected one down (arXiv:2408.06266 eq. 7)."""

    name: Literal["apo_zero"] = Field(default="apo_zero", description="Anchored: chosen answers up, rejected down.")
    paper: ClassVar[str] = "arXiv:2408.06266"

    def losses(self, pairs: ReferencedPairs, context: Context) -> Float[Tensor, " P"]:
        return apo_zero(self.beta * pairs.chosen_ratio_P, self.beta * pairs.rejected_ratio_P)

    def start_loss(self) -> float | None:
        return 1.0


class APODown(ReferencedObjective):
    """Anchored preference optimisation: both answers down, the rejected one more (arXiv:2408.06266 eq. 8)."""

    name: Literal["apo_down"] = Field(
        default="apo_down",
        description="Anchored: both answers down, the rejected one more.",
    )
    paper: ClassVar[str] = "arXiv:2408.06266"

    def losses(self, pairs: ReferencedPairs, context: Context) -> Float[Tensor, " P"]:
        return apo_down(self.beta * pairs.chosen_ratio_P, self.beta * pairs.rejected_ratio_P)

    def start_loss(self) -> float | None:
        return 1.0


class BCO(ReferencedObjective):
    """Binary classifier optimisation on pairs (arXiv:2404.04656).

    The shift between good and bad rewards is the running mean of earlier steps, 0 at the start, without gradient.
    """

    name: Literal["bco"] = Field(default="bco", description="Tells good from bad answers by a logistic classifier.")
    decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.99, description="Share of the running mean of rewards that a step keeps."
    )
    metric_names: ClassVar = (*REFERENCE_METRICS, BCO_MEAN, BCO_SHIFT)
    paper: ClassVar[str] = "arXiv:2404.04656"

    def figures(self, pairs: ReferencedPairs, context: Context) -> dict[str, Float[Tensor, " P"]]:
        mean_P = self.beta * (pairs.chosen_ratio_P + pairs.rejected_ratio_P) / 2
        return {BCO_MEAN: mean_P, BCO_SHIFT: torch.full_like(mean_P, context.memory.get(BCO_SHIFT, 0.0))}

    def losses(self, pairs: ReferencedPairs, context: Context) -> Float[Tensor, " P"]:
        shift = context.memory.get(BCO_SHIFT, 0.0)
        return bco(self.beta * pairs.chosen_ratio_P, self.beta * pairs.rejected_ratio_P, shift)

    def remember(self, memory: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
        return running_shift(memory, metrics, self.decay)

    def start_loss(self) -> float | None:
        return 2 * math.log(2)


def nca(chosen_P: Float[Tensor, " P"], rejected_P: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """-log sigma(r_w) - log sigma(-r_w) / 2 - log sigma(-r_l) / 2, r = beta * log-ratio (arXiv:2402.05369)."""
    return -logsigmoid(chosen_P) - logsigmoid(-chosen_P) / 2 - logsigmoid(-rejected_P) / 2


def sppo(chosen_P: Float[Tensor, " P"], rejected_P: Float[Tensor, " P"], beta: float) -> Float[Tensor, " P"]:
    """(log-ratio_w - 1 / (2 beta))^2 + (log-ratio_l + 1 / (2 beta))^2 (arXiv:2405.00675 eq. 4.7)."""
    target = 1 / (2 * beta)
    return (chosen_P - target).square() + (rejected_P + target).square()


def apo_zero(chosen_P: Float[Tensor, " P"], rejected_P: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """1 - sigma(r_w) + sigma(r_l) (arXiv:2408.06266 eq. 7)."""
    return apo_zero_good(chosen_P) + apo_zero_bad(rejected_P)


def apo_down(chosen_P: Float[Tensor, " P"], rejected_P: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """sigma(r_w) + 1 - sigma(r_w - r_l); the 1 only keeps it above 0 (arXiv:2408.06266 eq. 8)."""
    return torch.sigmoid(chosen_P) + torch.sigmoid(rejected_P - chosen_P)


def bco(chosen_P: Float[Tensor, " P"], rejected_P: Float[Tensor, " P"], shift: float) -> Float[Tensor, " P"]:
    """-log sigma(r_w - shift) - log sigma(-(r_l - shift)) (arXiv:2404.04656)."""
    return bco_good(chosen_P, shift) + bco_bad(rejected_P, shift)
