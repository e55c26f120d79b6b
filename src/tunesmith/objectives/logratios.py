"""What the losses on answers share: sums of log-probabilities per answer, log-ratios, common equations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from tunesmith.objectives.base import sequence_lengths, sequence_sums
from tunesmith.types import Batch

REFERENCE = "ref_logprobs"  # the stream of the reference's log-probabilities
DISTRIBUTION = "ref_distribution"  # not a stream of numbers: what the reference says of every next token
BCO_SHIFT = "bco/shift"  # running mean of the rewards, in memory and among the metrics
BCO_MEAN = "bco/mean"  # the step's own mean


@dataclass(frozen=True, slots=True)
class Pairs:
    """The answers of P pairs: log-probabilities summed over their scored tokens, and how many those are."""

    chosen_P: Float[Tensor, " P"]
    rejected_P: Float[Tensor, " P"]
    chosen_length_P: Float[Tensor, " P"]
    rejected_length_P: Float[Tensor, " P"]

    @property
    def scored_P(self) -> Float[Tensor, " P"]:
        """1 where both answers have scored tokens; the other pairs are no units."""
        return ((self.chosen_length_P > 0) & (self.rejected_length_P > 0)).to(self.chosen_P.dtype)

    @property
    def chosen_mean_P(self) -> Float[Tensor, " P"]:
        """Mean log-probability of a token of the chosen answer."""
        return self.chosen_P / self.chosen_length_P.clamp(min=1)

    @property
    def rejected_mean_P(self) -> Float[Tensor, " P"]:
        return self.rejected_P / self.rejected_length_P.clamp(min=1)


@dataclass(frozen=True, slots=True)
class ReferencedPairs(Pairs):
    """Pairs with their log-ratios, log policy - log reference.

    A log-ratio is summed of the differences of tokens: that of two long sums would be lost in their rounding.
    """

    chosen_ratio_P: Float[Tensor, " P"]
    rejected_ratio_P: Float[Tensor, " P"]

    @property
    def margin_P(self) -> Float[Tensor, " P"]:
        """How much more the policy prefers the chosen answer than the reference does."""
        return self.chosen_ratio_P - self.rejected_ratio_P


def pairs_of(logprobs_K: Float[Tensor, " K"], batch: Batch) -> Pairs:
    """Sequences 2i and 2i + 1 of a batch of pairs are the chosen and the rejected answer of pair i."""
    sums_S, lengths_S = sequence_sums(logprobs_K, batch), sequence_lengths(batch)
    return Pairs(sums_S[0::2], sums_S[1::2], lengths_S[0::2], lengths_S[1::2])


def referenced_pairs(
    logprobs_K: Float[Tensor, " K"], batch: Batch, share_K: Float[Tensor, " K"] | None = None
) -> ReferencedPairs:
    """Pairs with their reference; `share_K` is how much of each token enters the sums of both models."""
    ratio_K = logprobs_K - batch.streams[REFERENCE].detach()
    if share_K is not None:
        logprobs_K, ratio_K = logprobs_K * share_K, ratio_K * share_K
    own, ratio_S = pairs_of(logprobs_K, batch), sequence_sums(ratio_K, batch)
    return ReferencedPairs(
        own.chosen_P, own.rejected_P, own.chosen_length_P, own.rejected_length_P, ratio_S[0::2], ratio_S[1::2]
    )


def log1mexp(value_N: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """log(1 - exp(a)) for a < 0, accurate at both ends; its gradient is finite as well."""
    near_N = value_N > -0.6931471805599453
    close_N = torch.where(near_N, value_N, -1.0)
    far_N = torch.where(near_N, -1.0, value_N)
    return torch.where(near_N, (-torch.expm1(close_N)).log(), torch.log1p(-far_N.exp()))


def apo_zero_good(reward_N: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """1 - sigma(r): raises the reward of a good answer (arXiv:2408.06266 eq. 7)."""
    return torch.sigmoid(-reward_N)


def apo_zero_bad(reward_N: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """sigma(r): lowers the reward of a bad answer (arXiv:2408.06266 eq. 7)."""
    return torch.sigmoid(reward_N)


def bco_good(reward_N: Float[Tensor, " N"], shift: float) -> Float[Tensor, " N"]:
    """-log sigma(r - shift) (arXiv:2404.04656)."""
    return -logsigmoid(reward_N - shift)


def bco_bad(reward_N: Float[Tensor, " N"], shift: float) -> Float[Tensor, " N"]:
    """-log sigma(-(r - shift)) (arXiv:2404.04656)."""
    return -logsigmoid(shift - reward_N)


def running_shift(memory: Mapping[str, float], metrics: Mapping[str, float], decay: float) -> dict[str, float]:
    """The memory with the running mean of rewards brought forward by a step (arXiv:2404.04656)."""
    return {**memory, BCO_SHIFT: decay * memory.get(BCO_SHIFT, 0.0) + (1 - decay) * metrics[BCO_MEAN]}
