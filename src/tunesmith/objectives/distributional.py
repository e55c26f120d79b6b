"""A loss on the distribution of margins over a whole step rather than on each pair."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from tunesmith.objectives.logratios import ReferencedPairs, referenced_pairs
from tunesmith.objectives.pairs import ReferencedObjective
from tunesmith.types import Batch, Context, Scores


class AOT(ReferencedObjective):
    """Alignment by optimal transport: sorted margins against sorted margins of the reference (arXiv:2406.05882).

    Paired: the margins of the policy against those of the reference. Unpaired: the log-ratios of all chosen answers
    against those of all rejected ones, whichever prompt they answer. Both are sorted over the whole step, so a loss in
    one microbatch depends on the rows of all.
    """

    name: Literal["aot"] = Field(default="aot", description="Sorts margins over the whole step before comparing them.")
    pairing: Literal["paired", "unpaired"] = Field(
        default="paired", description="Compare margins with the reference's, or chosen with rejected answers."
    )
    looks_ahead: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv:2406.05882"

    def glance(self, policy: Scores, batch: Batch) -> Float[Tensor, "R 2"]:
        """Policy's and reference's log-probability margin of each pair, or its log-ratios."""
        pairs = referenced_pairs(policy.logprobs, batch)
        rows_P2 = torch.stack(self.columns(pairs), 1)
        return rows_P2[pairs.scored_P > 0].detach()

    def columns(self, pairs: ReferencedPairs) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
        if self.pairing == "unpaired":
            return pairs.chosen_ratio_P, pairs.rejected_ratio_P
        own_P = pairs.chosen_P - pairs.rejected_P
        return own_P, own_P.detach() - pairs.margin_P.detach()

    def losses(self, pairs: ReferencedPairs, context: Context) -> Float[Tensor, " P"]:
        assert context.rows is not None, "a step gathers the rows of a loss that looks ahead"
        left_P, right_P = self.columns(pairs)
        left_R, right_R = context.rows.detach().reshape(-1, 2).unbind(1)
        if self.pairing == "paired":
            return transport(left_P, left_R, right_R, self.beta)
        chosen_P = transport(left_P, left_R, right_R, self.beta)
        rejected_P = transport(-right_P, -right_R, -left_R, self.beta)
        both_P = chosen_P + rejected_P  # each matched pair of answers stands in it twice, once with each one's gradient
        return both_P - both_P.detach() / 2

    def start_loss(self) -> float | None:
        return math.log(2)


def transport(
    own_P: Float[Tensor, " P"], own_R: Float[Tensor, " R"], other_R: Float[Tensor, " R"], beta: float
) -> Float[Tensor, " P"]:
    """-log sigma(beta (own - other of the same rank)) (arXiv:2406.05882).

    `own_P` are those of `own_R` that carry a gradient. Equal ones share their ranks: each has the mean of their losses.
    """
    ranks_PR = same_rank(own_P.detach(), own_R)
    losses_PR = -logsigmoid(beta * (own_P[:, None] - other_R.sort().values[None, :]))
    return torch.where(ranks_PR, losses_PR, 0.0).sum(1) / ranks_PR.sum(1).clamp(min=1)


def same_rank(own_P: Float[Tensor, " P"], own_R: Float[Tensor, " R"]) -> Bool[Tensor, "P R"]:
    """Which places of the sorted `own_R` hold the value; the nearest ones, since a second forward pass may round."""
    sorted_R = own_R.sort().values
    between = (sorted_R[1:] + sorted_R[:-1]) / 2
    own_P = own_P.contiguous()
    first_P, last_P = torch.searchsorted(between, own_P), torch.searchsorted(between, own_P, right=True)
    places_R = torch.arange(len(own_R), device=own_R.device)
    return (places_R >= first_P[:, None]) & (places_R <= last_P[:, None])
