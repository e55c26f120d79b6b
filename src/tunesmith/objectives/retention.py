"""Losses that hold a policy near its reference while another objective teaches it."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tunesmith.objectives.base import NOTHING, Objective
from tunesmith.objectives.logratios import DISTRIBUTION, REFERENCE
from tunesmith.types import Batch, Context, Loss, Scores

FAR = 10.0  # nats by which a token may have become less likely before its penalty goes on as a straight line


class KLToReference(Objective):
    """KL(policy || reference) of the whole next-token distribution at each scored place (arXiv:1907.00456).

    Exact, over the full vocabulary; stands beside another objective, times its coefficient.
    """

    name: Literal["kl_to_reference"] = Field(
        default="kl_to_reference",
        description="Divergence of all next tokens from the reference, where tokens are scored.",
    )
    unit: ClassVar = "token"
    needs: ClassVar = frozenset({DISTRIBUTION})
    paper: ClassVar[str] = "arXiv:1907.00456"

    def __call__(self, policy: Scores, batch: Batch, context: Context = NOTHING) -> Loss:
        assert policy.divergence is not None, "a batch with states of the reference is scored with their divergence"
        return Loss((batch.weight * policy.divergence).sum())

    def count(self, batch: Batch) -> float:
        return batch.weight.sum().item()

    def start_loss(self) -> float | None:
        return 0.0


class K3ToReference(Objective):
    """exp(r) - 1 - r of each scored token, r = log q - log p: 0 where policy p and reference q agree on it.

    With tokens that the policy drew itself it estimates KL(policy || reference) (arXiv:2402.03300 eq. 4); with tokens
    of records it penalises how far their probabilities have moved. Beyond r = 10 it goes on along its tangent.
    """

    name: Literal["k3_to_reference"] = Field(
        default="k3_to_reference",
        description="How far the scored tokens' own probabilities have moved from the reference.",
    )
    unit: ClassVar = "token"
    needs: ClassVar = frozenset({REFERENCE})
    paper: ClassVar[str] = "arXiv:2402.03300"

    def __call__(self, policy: Scores, batch: Batch, context: Context = NOTHING) -> Loss:
        return Loss((batch.weight * k3(batch.streams[REFERENCE].detach() - policy.logprobs)).sum())

    def count(self, batch: Batch) -> float:
        return batch.weight.sum().item()

    def start_loss(self) -> float | None:
        return 0.0


def k3(ratio_K: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """exp(r) - 1 - r, and its tangent beyond FAR."""
    near_K = ratio_K.clamp(max=FAR)
    slope = torch.expm1(torch.tensor(FAR, dtype=ratio_K.dtype, device=ratio_K.device))
    return torch.expm1(near_K) - near_K + slope * (ratio_K - FAR).clamp(min=0.0)
