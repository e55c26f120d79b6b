"""Losses on pairs that need no reference: the policy's own likelihood of the answers is the reward."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from tunesmith.objectives.base import NOTHING
from tunesmith.objectives.logratios import Pairs, log1mexp, pairs_of
from tunesmith.objectives.pairs import PAIR_METRICS, Beta, PairObjective, pair_metrics, sums_over
from tunesmith.types import Batch, Context, Loss, Scores

SUREST = -1e-7  # the largest mean log-probability whose odds are formed; those of 0 are infinite


class SimPO(PairObjective):
    """Logistic loss on the difference of mean log-probabilities beyond a margin (arXiv:2405.14734 eq. 6)."""

    name: Literal["simpo"] = Field(
        default="simpo", description="Logistic loss on mean log-probabilities, without a reference."
    )
    beta: Beta = Field(default=2.0, description="Factor of the mean log-probabilities.")
    gamma: Annotated[float, Field(ge=0, le=100)] = Field(
        default=1.0, description="Margin that the scaled difference must exceed; about half of beta."
    )
    paper: ClassVar[str] = "arXiv:2405.14734"

    def __call__(self, policy: Scores, batch: Batch, context: Context = NOTHING) -> Loss:
        pairs = pairs_of(policy.logprobs, batch)
        losses_P = simpo(pairs.chosen_mean_P, pairs.rejected_mean_P, self.beta, self.gamma)
        metrics = pair_metrics(pairs, self.beta * pairs.chosen_mean_P, self.beta * pairs.rejected_mean_P)
        return Loss((losses_P * pairs.scored_P).sum(), metrics)


class CPO(PairObjective):
    """DPO without a reference, plus the chosen answer's likelihood (arXiv:2401.08417)."""

    name: Literal["cpo"] = Field(
        default="cpo", description="Logistic loss on summed log-probabilities and the chosen answer's likelihood."
    )
    beta: Beta = Field(default=0.1, description="Factor of the log-probabilities.")
    alpha: Annotated[float, Field(ge=0, le=1000)] = Field(
        default=1.0, description="Factor of the chosen answer's negative log-likelihood per token."
    )
    metric_names: ClassVar = (*PAIR_METRICS, "nll")
    paper: ClassVar[str] = "arXiv:2401.08417"

    def __call__(self, policy: Scores, batch: Batch, context: Context = NOTHING) -> Loss:
        pairs = pairs_of(policy.logprobs, batch)
        losses_P = cpo(pairs.chosen_P, pairs.rejected_P, self.beta) - self.alpha * pairs.chosen_mean_P
        metrics = pair_metrics(pairs, self.beta * pairs.chosen_P, self.beta * pairs.rejected_P)
        return Loss((losses_P * pairs.scored_P).sum(), metrics | nll(pairs))


class ORPO(PairObjective):
    """Likelihood of the chosen answer plus the log of the odds ratio (arXiv:2403.07691 eq. 6-7).

    The likelihood is of the chosen answer alone, not of its prompt. `odds` is the mean log-odds ratio.
    """

    name: Literal["orpo"] = Field(
        default="orpo", description="Likelihood of the chosen answer and odds against the rejected one, in one stage."
    )
    beta: Beta = Field(default=0.1, description="Factor of the odds-ratio term, the paper's lambda.")
    metric_names: ClassVar = (*PAIR_METRICS, "nll", "odds")
    paper: ClassVar[str] = "arXiv:2403.07691"

    def __call__(self, policy: Scores, batch: Batch, context: Context = NOTHING) -> Loss:
        pairs = pairs_of(policy.logprobs, batch)
        odds_P = log_odds_ratio(pairs.chosen_mean_P, pairs.rejected_mean_P)
        losses_P = -self.beta * logsigmoid(odds_P) - pairs.chosen_mean_P
        metrics = pair_metrics(pairs, pairs.chosen_mean_P, pairs.rejected_mean_P)
        return Loss((losses_P * pairs.scored_P).sum(), metrics | nll(pairs) | sums_over({"odds": odds_P}, pairs))


def simpo(
    chosen_mean_P: Float[Tensor, " P"], rejected_mean_P: Float[Tensor, " P"], beta: float, gamma: float
) -> Float[Tensor, " P"]:
    """-log sigma(beta (mean_w - mean_l) - gamma) (arXiv:2405.14734 eq. 6)."""
    return -logsigmoid(beta * (chosen_mean_P - rejected_mean_P) - gamma)


def cpo(chosen_P: Float[Tensor, " P"], rejected_P: Float[Tensor, " P"], beta: float) -> Float[Tensor, " P"]:
    """-log sigma(beta (logp_w - logp_l)) of summed log-probabilities (arXiv:2401.08417)."""
    return -logsigmoid(beta * (chosen_P - rejected_P))


def log_odds_ratio(chosen_mean_P: Float[Tensor, " P"], rejected_mean_P: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """log of odds(w) / odds(l), odds = p / (1 - p), p the geometric mean of a token (arXiv:2403.07691 eq. 7)."""
    return log_odds(chosen_mean_P) - log_odds(rejected_mean_P)


def log_odds(mean_P: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    return mean_P - log1mexp(mean_P.clamp(max=SUREST))


def nll(pairs: Pairs) -> dict[str, Tensor]:
    """The chosen answers' negative log-likelihood per token, summed over pairs."""
    return sums_over({"nll": -pairs.chosen_mean_P}, pairs)
