"""Losses on the margin of a pair: how much more the policy prefers the chosen answer than the reference does."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from tunesmith.objectives.base import NOTHING
from tunesmith.objectives.logratios import Pairs, ReferencedPairs, pairs_of, referenced_pairs
from tunesmith.objectives.pairs import REFERENCE_METRICS, Beta, ReferencedObjective, Share
from tunesmith.types import Batch, Context, Loss, Scores

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]
LARGEST_POWER = 30.0  # exp is continued as a straight line beyond it, so that a far log-ratio keeps a finite gradient


class DPO(ReferencedObjective):
    """Direct preference optimisation (arXiv:2305.18290 eq. 7)."""

    name: Literal["dpo"] = Field(default="dpo", description="Direct preference optimisation: logistic loss on a pair.")
    wpo: bool = Field(
        default=False, description="Weigh a pair by how likely the policy itself would say it (arXiv:2406.11827)."
    )
    paper: ClassVar[str] = "arXiv:2305.18290"

    def losses(self, pairs: ReferencedPairs, context: Context) -> Float[Tensor, " P"]:
        losses_P = dpo(self.beta * pairs.margin_P)
        return losses_P * wpo_weight(pairs) if self.wpo else losses_P

    def start_loss(self) -> float | None:
        return None if self.wpo else math.log(2)


class ConservativeDPO(ReferencedObjective):
    """DPO with smoothed labels; lowest where sigma(beta * margin) = 1 - epsilon (arXiv:2305.18290, note on cDPO)."""

    name: Literal["cdpo"] = Field(default="cdpo", description="DPO that takes a share of the labels to be wrong.")
    epsilon: Annotated[float, Field(ge=0, le=0.5)] = Field(default=0.1, description="Share of labels that are wrong.")
    paper: ClassVar[str] = "arXiv:2305.18290"

    def losses(self, pairs: ReferencedPairs, context: Context) -> Float[Tensor, " P"]:
        return cdpo(self.beta * pairs.margin_P, self.epsilon)

    def start_loss(self) -> float | None:
        return math.log(2)


class RobustDPO(ReferencedObjective):
    """DPO whose expectation under flipped labels is the clean loss; it may be negative (arXiv:2403.00409)."""

    name: Literal["robust_dpo"] = Field(default="robust_dpo", description="DPO that is unbiased under flipped labels.")
    epsilon: Annotated[float, Field(ge=0, lt=0.5)] = Field(default=0.1, description="Share of labels that are flipped.")
    paper: ClassVar[str] = "arXiv:2403.00409"

    def losses(self, pairs: ReferencedPairs, context: Context) -> Float[Tensor, " P"]:
        return robust_dpo(self.beta * pairs.margin_P, self.epsilon)

    def start_loss(self) -> float | None:
        return math.log(2)


class IPO(ReferencedObjective):
    """Squared distance of the margin from 1 / (2 beta), beta being the paper's tau (arXiv:2310.12036 eq. 17).

    `sum` is the paper's literal margin of summed log-ratios; `mean` divides each by the length of its answer, since
    the target does not grow with length: one long pair would dominate the batch.
    """

    name: Literal["ipo"] = Field(default="ipo", description="Squared distance of the margin from 1 / (2 beta).")
    reduction: Literal["mean", "sum"] = Field(
        default="mean", description="Log-ratios per token, or summed over the answer."
    )
    paper: ClassVar[str] = "arXiv:2310.12036"

    def losses(self, pairs: ReferencedPairs, context: Context) -> Float[Tensor, " P"]:
        return ipo(mean_margin(pairs) if self.reduction == "mean" else pairs.margin_P, self.beta)

    def start_loss(self) -> float | None:
        return 1 / (4 * self.beta**2)


class Hinge(ReferencedObjective):
    """Hinge loss on the margin, zero beyond 1 (arXiv:2309.06657, SLiC on log-ratios)."""

    name: Literal["hinge"] = Field(default="hinge", description="Hinge loss on a pair; zero beyond margin 1.")
    paper: ClassVar[str] = "arXiv:2309.06657"

    def losses(self, pairs: ReferencedPairs, context: Context) -> Float[Tensor, " P"]:
        return hinge(self.beta * pairs.margin_P)

    def start_loss(self) -> float | None:
        return 1.0


class RPO(ReferencedObjective):
    """DPO plus the chosen answer's mean negative log-likelihood (arXiv:2404.19733)."""

    name: Literal["rpo"] = Field(default="rpo", description="DPO that also learns to say the chosen answer.")
    alpha: Annotated[float, Field(ge=0, le=1000)] = Field(
        default=1.0, description="Factor of the chosen answer's negative log-likelihood per token."
    )
    metric_names: ClassVar = (*REFERENCE_METRICS, "nll")
    paper: ClassVar[str] = "arXiv:2404.19733"

    def losses(self, pairs: ReferencedPairs, context: Context) -> Float[Tensor, " P"]:
        return dpo(self.beta * pairs.margin_P) - self.alpha * pairs.chosen_mean_P

    def figures(self, pairs: ReferencedPairs, context: Context) -> dict[str, Float[Tensor, " P"]]:
        return {"nll": -pairs.chosen_mean_P}


class LengthNormalisedDPO(ReferencedObjective):
    """DPO on log-ratios per token (arXiv:2411.15124)."""

    name: Literal["ln_dpo"] = Field(default="ln_dpo", description="DPO on log-ratios per token.")
    beta: Beta = Field(default=5.0, description="Factor of the log-ratios per token; larger than in DPO.")
    paper: ClassVar[str] = "arXiv:2411.15124"

    def losses(self, pairs: ReferencedPairs, context: Context) -> Float[Tensor, " P"]:
        return dpo(self.beta * mean_margin(pairs))

    def start_loss(self) -> float | None:
        return math.log(2)


class LengthDesensitisedDPO(ReferencedObjective):
    """DPO in which tokens beyond the length of the shorter answer count by `alpha` only (arXiv:2409.06411)."""

    name: Literal["ld_dpo"] = Field(
        default="ld_dpo", description="DPO that counts the tokens of the longer answer's excess less."
    )
    alpha: Share = Field(default=0.5, description="Share of the excess tokens; 1 is DPO.")
    paper: ClassVar[str] = "arXiv:2409.06411"

    def __call__(self, policy: Scores, batch: Batch, context: Context = NOTHING) -> Loss:
        pairs = referenced_pairs(policy.logprobs, batch)
        seen = referenced_pairs(policy.logprobs, batch, excess_share(batch, self.alpha))
        return self.summed(pairs, seen, context)

    def losses(self, pairs: ReferencedPairs, context: Context) -> Float[Tensor, " P"]:
        return dpo(self.beta * pairs.margin_P)

    def start_loss(self) -> float | None:
        return math.log(2)


class DivergenceDPO(ReferencedObjective):
    """DPO under another divergence from the reference (arXiv:2309.16240)."""

    name: Literal["f_dpo"] = Field(default="f_dpo", description="DPO under another divergence from the reference.")
    divergence: Divergence = Field(default="forward_kl", description="The divergence; reverse_kl is DPO.")
    alpha: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.5, description="With alpha: 0 is the forward KL, towards 1 the reverse KL."
    )
    paper: ClassVar[str] = "arXiv:2309.16240"

    def losses(self, pairs: ReferencedPairs, context: Context) -> Float[Tensor, " P"]:
        chosen_P = divergence_slope(pairs.chosen_ratio_P, self.divergence, self.alpha)
        rejected_P = divergence_slope(pairs.rejected_ratio_P, self.divergence, self.alpha)
        return dpo(self.beta * (chosen_P - rejected_P))

    def start_loss(self) -> float | None:
        return math.log(2)


class EXO(ReferencedObjective):
    """Reverse KL from the preference to smoothed labels (arXiv:2402.00856 eq. 16)."""

    name: Literal["exo"] = Field(default="exo", description="Exact optimisation: reverse KL to smoothed preferences.")
    epsilon: Annotated[float, Field(ge=1e-6, le=0.5)] = Field(
        default=1e-3, description="Share of labels that are wrong."
    )
    paper: ClassVar[str] = "arXiv:2402.00856"

    def losses(self, pairs: ReferencedPairs, context: Context) -> Float[Tensor, " P"]:
        return exo(self.beta * pairs.margin_P, self.epsilon)

    def start_loss(self) -> float | None:
        return (math.log(0.5 / (1 - self.epsilon)) + math.log(0.5 / self.epsilon)) / 2


class DiscoPOP(ReferencedObjective):
    """Logistic and exponential loss, mixed by the margin itself (arXiv:2406.08414 eq. 5)."""

    name: Literal["discopop"] = Field(
        default="discopop", description="Logistic and exponential loss, mixed by the margin; a discovered loss."
    )
    tau: Annotated[float, Field(ge=1e-3, le=1)] = Field(default=0.05, description="Width of the mixture's switch.")
    paper: ClassVar[str] = "arXiv:2406.08414"

    def losses(self, pairs: ReferencedPairs, context: Context) -> Float[Tensor, " P"]:
        return discopop(self.beta * pairs.margin_P, self.tau)

    def start_loss(self) -> float | None:
        return (math.log(2) + 1) / 2


def dpo(scaled_P: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """-log sigma(u), u = beta * margin (arXiv:2305.18290 eq. 7)."""
    return -logsigmoid(scaled_P)


def cdpo(scaled_P: Float[Tensor, " P"], epsilon: float) -> Float[Tensor, " P"]:
    """-(1 - e) log sigma(u) - e log sigma(-u) (arXiv:2305.18290, Mitchell's note of 2023)."""
    return -(1 - epsilon) * logsigmoid(scaled_P) - epsilon * logsigmoid(-scaled_P)


def robust_dpo(scaled_P: Float[Tensor, " P"], epsilon: float) -> Float[Tensor, " P"]:
    """(-(1 - e) log sigma(u) + e log sigma(-u)) / (1 - 2 e) (arXiv:2403.00409)."""
    return (-(1 - epsilon) * logsigmoid(scaled_P) + epsilon * logsigmoid(-scaled_P)) / (1 - 2 * epsilon)


def ipo(margin_P: Float[Tensor, " P"], beta: float) -> Float[Tensor, " P"]:
    """(margin - 1 / (2 beta))^2 (arXiv:2310.12036 eq. 17)."""
    return (margin_P - 1 / (2 * beta)).square()


def hinge(scaled_P: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """max(0, 1 - u) (arXiv:2309.06657)."""
    return torch.relu(1 - scaled_P)


def exo(scaled_P: Float[Tensor, " P"], epsilon: float) -> Float[Tensor, " P"]:
    """sigma(u)(log sigma(u) - log(1 - e)) + sigma(-u)(log sigma(-u) - log e) (arXiv:2402.00856 eq. 16)."""
    right_P = torch.sigmoid(scaled_P) * (logsigmoid(scaled_P) - math.log1p(-epsilon))
    return right_P + torch.sigmoid(-scaled_P) * (logsigmoid(-scaled_P) - math.log(epsilon))


def discopop(scaled_P: Float[Tensor, " P"], tau: float) -> Float[Tensor, " P"]:
    """(1 - m)(-log sigma(u)) + m exp(-u), m = sigma(u / tau); its product formed in logs (arXiv:2406.08414 eq. 5)."""
    exponential_P = (logsigmoid(scaled_P / tau) - scaled_P).exp()
    return -torch.sigmoid(-scaled_P / tau) * logsigmoid(scaled_P) + exponential_P


def divergence_slope(ratio_P: Float[Tensor, " P"], divergence: Divergence, alpha: float) -> Float[Tensor, " P"]:
    """f'(exp r) up to a constant, for a log-ratio r (arXiv:2309.16240)."""
    if divergence == "forward_kl":
        return -bounded_exp(-ratio_P)
    if divergence == "js":
        return logsigmoid(ratio_P)
    if divergence == "alpha":
        return bounded_exp((alpha - 1) * ratio_P) / (alpha - 1)
    return ratio_P


def bounded_exp(power_N: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """exp(x), and its tangent beyond LARGEST_POWER."""
    beyond_N = torch.relu(power_N - LARGEST_POWER)
    return power_N.clamp(max=LARGEST_POWER).exp() + math.exp(LARGEST_POWER) * beyond_N


def mean_margin(pairs: ReferencedPairs) -> Float[Tensor, " P"]:
    """The margin of log-ratios per token."""
    chosen_P = pairs.chosen_ratio_P / pairs.chosen_length_P.clamp(min=1)
    return chosen_P - pairs.rejected_ratio_P / pairs.rejected_length_P.clamp(min=1)


def wpo_weight(pairs: Pairs) -> Float[Tensor, " P"]:
    """exp of the answers' mean log-probabilities under the policy, no gradient (arXiv:2406.11827 eq. 2)."""
    return (pairs.chosen_mean_P + pairs.rejected_mean_P).detach().exp().clamp(max=1)


def excess_share(batch: Batch, alpha: float) -> Float[Tensor, " K"]:
    """`alpha` at scored tokens beyond the length of the pair's shorter answer, 1 before (arXiv:2409.06411)."""
    pairs = pairs_of(torch.zeros_like(batch.weight), batch)
    shorter_P = torch.minimum(pairs.chosen_length_P, pairs.rejected_length_P)
    lengths_S = torch.stack([pairs.chosen_length_P, pairs.rejected_length_P], 1).flatten()
    starts_S = lengths_S.cumsum(0) - lengths_S
    place_K = torch.arange(len(batch.sequence), device=batch.sequence.device) - starts_S[batch.sequence]
    return torch.where(place_K < shorter_P[batch.sequence // 2], 1.0, alpha)
