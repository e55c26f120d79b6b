"""What the objectives on pairs share: their unit, their reference, and the figures they report."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tunesmith.objectives.base import NOTHING, Objective
from tunesmith.objectives.logratios import REFERENCE, Pairs, ReferencedPairs, pairs_of, referenced_pairs
from tunesmith.types import Batch, Context, Kind, Loss, Scores

Beta = Annotated[float, Field(ge=1e-4, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]

PAIR_METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margin",
    "rewards/accuracy",
    "logps/chosen",
    "logps/rejected",
    "length/chosen",
    "length/rejected",
)
REFERENCE_METRICS = (*PAIR_METRICS, "kl", "displacement")


class PairObjective(Objective):
    """Learns which of two answers is preferred; the unit is a pair whose answers both have scored tokens."""

    kind: ClassVar[Kind] = "pair"
    unit: ClassVar = "pair"
    metric_names: ClassVar = PAIR_METRICS

    def count(self, batch: Batch) -> float:
        return pairs_of(torch.zeros_like(batch.weight), batch).scored_P.sum().item()


class ReferencedObjective(PairObjective):
    """A loss on the log-ratios of policy and reference; beta times a log-ratio is the implicit reward."""

    beta: Beta = Field(default=0.1, description="Factor of the log-ratios; small lets the policy leave the reference.")
    needs: ClassVar[frozenset[str]] = frozenset({REFERENCE})
    metric_names: ClassVar = REFERENCE_METRICS

    def __call__(self, policy: Scores, batch: Batch, context: Context = NOTHING) -> Loss:
        pairs = referenced_pairs(policy.logprobs, batch)
        return self.summed(pairs, pairs, context)

    def losses(self, pairs: ReferencedPairs, context: Context) -> Float[Tensor, " P"]:
        raise NotImplementedError

    def figures(self, pairs: ReferencedPairs, context: Context) -> dict[str, Float[Tensor, " P"]]:
        """Metrics of its own beside those of all losses with a reference."""
        return {}

    def summed(self, pairs: ReferencedPairs, seen: ReferencedPairs, context: Context) -> Loss:
        """Losses and metrics summed over the pairs; `seen` are the log-ratios as the loss sees them."""
        chosen_P, rejected_P = pairs.chosen_ratio_P, pairs.rejected_ratio_P
        figures = {
            "kl": (chosen_P + rejected_P) / 2,
            "displacement": ((chosen_P < 0) & (rejected_P < 0)).to(chosen_P.dtype),
            **self.figures(pairs, context),
        }
        rewards = pair_metrics(pairs, self.beta * seen.chosen_ratio_P, self.beta * seen.rejected_ratio_P)
        return Loss((self.losses(seen, context) * pairs.scored_P).sum(), rewards | sums_over(figures, pairs))


def pair_metrics(
    pairs: Pairs, chosen_reward_P: Float[Tensor, " P"], rejected_reward_P: Float[Tensor, " P"]
) -> dict[str, Tensor]:
    """The sums named in PAIR_METRICS; a tie is half right."""
    figures = {
        "rewards/chosen": chosen_reward_P,
        "rewards/rejected": rejected_reward_P,
        "rewards/margin": chosen_reward_P - rejected_reward_P,
        "rewards/accuracy": ((chosen_reward_P - rejected_reward_P).sign() + 1) / 2,
        "logps/chosen": pairs.chosen_P,
        "logps/rejected": pairs.rejected_P,
        "length/chosen": pairs.chosen_length_P,
        "length/rejected": pairs.rejected_length_P,
    }
    return sums_over(figures, pairs)


def sums_over(figures: dict[str, Float[Tensor, " P"]], pairs: Pairs) -> dict[str, Tensor]:
    """Each figure summed over the pairs that are units, without gradient."""
    return {name: (figure_P.detach() * pairs.scored_P).sum() for name, figure_P in figures.items()}
