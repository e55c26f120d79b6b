"""Losses on the values that a head reads: reward models, classifiers, regressors and process reward models."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from tunesmith.objectives.base import NOTHING, Objective, sequence_lengths, sequence_sums
from tunesmith.objectives.logratios import Pairs, pairs_of
from tunesmith.objectives.pairs import PairObjective, sums_over
from tunesmith.types import Batch, Context, Kind, Loss, Reads, Scores


class Reward(PairObjective):
    """Bradley-Terry reward model with a margin and a pull towards 0 (arXiv:2307.09288 eq. 2)."""

    name: Literal["reward"] = Field(default="reward", description="Reward model learned from pairs (Bradley-Terry).")
    margin: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0, description="By how much the chosen answer's reward must be higher."
    )
    rating_margin: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0, description="Added to the margin per point by which the record rates the chosen answer higher."
    )
    center: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0,
        description="Factor of the squared sum of a pair's rewards, which keeps them around 0.",
    )
    reads: ClassVar[Reads] = "values"
    metric_names: ClassVar = (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margin",
        "rewards/accuracy",
        "rewards/mean",
        "loss/comparison",
        "loss/center",
    )
    paper: ClassVar[str] = "arXiv:2307.09288"

    def __call__(self, policy: Scores, batch: Batch, context: Context = NOTHING) -> Loss:
        pairs = pairs_of(rewards_of(policy), batch)
        margin_P = self.margin + self.rating_margin * (batch.labels[0::2] - batch.labels[1::2])
        compared_P = bradley_terry(pairs.chosen_P, pairs.rejected_P, margin_P)
        centered_P = self.center * centering(pairs.chosen_P, pairs.rejected_P)
        figures = reward_figures(pairs) | {"loss/comparison": compared_P, "loss/center": centered_P}
        return Loss(((compared_P + centered_P) * pairs.scored_P).sum(), sums_over(figures, pairs))


class RankingReward(Objective):
    """Reward model learned from rankings: all pairs of a prompt's answers in one unit (arXiv:2203.02155 eq. 1).

    Answers of equal rating are not compared; a prompt without any comparison is no unit.
    """

    name: Literal["ranking_reward"] = Field(
        default="ranking_reward", description="Reward model learned from ranked answers."
    )
    comparison: Literal["pairwise", "plackett_luce"] = Field(
        default="pairwise", description="The mean over pairs of answers, or the likelihood of the whole ranking."
    )
    unit: ClassVar = "ranking"
    kind: ClassVar[Kind] = "ranking"
    reads: ClassVar[Reads] = "values"
    metric_names: ClassVar = ("rewards/margin", "rewards/accuracy", "rewards/mean")
    paper: ClassVar[str] = "arXiv:2203.02155"

    def __call__(self, policy: Scores, batch: Batch, context: Context = NOTHING) -> Loss:
        reward_S, better_SS = sequence_sums(rewards_of(policy), batch), comparisons(batch)
        share_SS = shares(better_SS, batch)
        if self.comparison == "pairwise":
            loss = pairwise(reward_S, share_SS)
        else:
            loss = plackett_luce(reward_S, better_SS)
        return Loss(loss, ranking_metrics(reward_S.detach(), share_SS, batch))

    def count(self, batch: Batch) -> float:
        return len(batch.group[comparisons(batch).any(1)].unique())


class Classify(Objective):
    """Cross-entropy over classes, read at the last token (arXiv:1810.04805 section 4.1)."""

    name: Literal["classify"] = Field(default="classify", description="Classifier: cross-entropy over classes.")
    unit: ClassVar = "sequence"
    kind: ClassVar[Kind] = "label"
    reads: ClassVar[Reads] = "values"
    named_labels: ClassVar[bool] = True
    metric_names: ClassVar = ("accuracy",)
    paper: ClassVar[str] = "arXiv:1810.04805"

    def __call__(self, policy: Scores, batch: Batch, context: Context = NOTHING) -> Loss:
        values_KC, classes_K = values_of(policy), batch.labels[batch.sequence].long()
        losses_K = cross_entropy(values_KC, classes_K, reduction="none")
        right_K = (values_KC.argmax(1) == classes_K).to(batch.weight.dtype)
        return Loss((batch.weight * losses_K).sum(), {"accuracy": (batch.weight * right_K).sum()})

    def count(self, batch: Batch) -> float:
        return batch.weight.sum().item()


class Regress(Objective):
    """Squared error of a number read at the last token (arXiv:1810.04805 section 4.1)."""

    name: Literal["regress"] = Field(default="regress", description="Regressor: mean squared error.")
    unit: ClassVar = "sequence"
    kind: ClassVar[Kind] = "label"
    reads: ClassVar[Reads] = "values"
    metric_names: ClassVar = ("absolute_error",)
    paper: ClassVar[str] = "arXiv:1810.04805"

    def __call__(self, policy: Scores, batch: Batch, context: Context = NOTHING) -> Loss:
        error_K = rewards_of(policy) - batch.labels[batch.sequence]
        metrics = {"absolute_error": (batch.weight * error_K.detach().abs()).sum()}
        return Loss((batch.weight * error_K.square()).sum(), metrics)

    def count(self, batch: Batch) -> float:
        return batch.weight.sum().item()


class ProcessReward(Objective):
    """Binary cross-entropy of each step of an answer, read at the step's last token (arXiv:2305.20050)."""

    name: Literal["process_reward"] = Field(
        default="process_reward", description="Reward model of the steps of an answer: is each one right."
    )
    unit: ClassVar = "token"
    kind: ClassVar[Kind] = "process"
    reads: ClassVar[Reads] = "values"
    metric_names: ClassVar = ("accuracy", "rewards/mean")
    paper: ClassVar[str] = "arXiv:2305.20050"

    def __call__(self, policy: Scores, batch: Batch, context: Context = NOTHING) -> Loss:
        reward_K, label_K = rewards_of(policy), batch.labels[batch.sequence]
        losses_K = process_reward(reward_K, label_K)
        right_K = ((reward_K > 0) == (label_K > 0.5)).to(batch.weight.dtype)
        metrics = {
            "accuracy": (batch.weight * right_K).sum(),
            "rewards/mean": (batch.weight * reward_K.detach()).sum(),
        }
        return Loss((batch.weight * losses_K).sum(), metrics)

    def count(self, batch: Batch) -> float:
        return batch.weight.sum().item()


def bradley_terry(
    chosen_P: Float[Tensor, " P"], rejected_P: Float[Tensor, " P"], margin_P: Float[Tensor, " P"] | float = 0.0
) -> Float[Tensor, " P"]:
    """-log sigma(r_w - r_l - m) (arXiv:2307.09288 eq. 2)."""
    return -logsigmoid(chosen_P - rejected_P - margin_P)


def centering(chosen_P: Float[Tensor, " P"], rejected_P: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """(r_w + r_l)^2 (arXiv:2312.09244)."""
    return (chosen_P + rejected_P).square()


def pairwise(reward_S: Float[Tensor, " S"], share_SS: Float[Tensor, "S S"]) -> Float[Tensor, ""]:
    """Sum of -log sigma(r_i - r_j), each comparison by its share of its prompt's (arXiv:2203.02155 eq. 1)."""
    return -(logsigmoid(reward_S[:, None] - reward_S[None, :]) * share_SS).sum()


def plackett_luce(reward_S: Float[Tensor, " S"], better_SS: Bool[Tensor, "S S"]) -> Float[Tensor, ""]:
    """Sum of logsumexp over an answer and all worse ones of its prompt - its reward (arXiv:2305.18290 appendix A.3)."""
    reach_SS = better_SS | torch.eye(len(reward_S), dtype=torch.bool, device=reward_S.device)
    reached_SS = reward_S[None, :].expand(reach_SS.shape).masked_fill(~reach_SS, -torch.inf)
    return (reached_SS.logsumexp(1) - reward_S).sum()


def process_reward(reward_K: Float[Tensor, " K"], label_K: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """-label log sigma(r) - (1 - label) log sigma(-r) (arXiv:2305.20050)."""
    return -label_K * logsigmoid(reward_K) - (1 - label_K) * logsigmoid(-reward_K)


def comparisons(batch: Batch) -> Bool[Tensor, "S S"]:
    """Where the answer of the row is rated above that of the column, for the same prompt."""
    scored_S = sequence_lengths(batch) > 0
    together_SS = (batch.group[:, None] == batch.group[None, :]) & scored_S[:, None] & scored_S[None, :]
    return together_SS & (batch.labels[:, None] > batch.labels[None, :])


def shares(better_SS: Bool[Tensor, "S S"], batch: Batch) -> Float[Tensor, "S S"]:
    """1 / the number of comparisons of its prompt for each comparison, 0 elsewhere."""
    compared_S = better_SS.sum(1).float()
    of_group_S = compared_S.new_zeros(len(compared_S)).index_add(0, batch.group, compared_S)[batch.group]
    return better_SS / of_group_S.clamp(min=1)[:, None]


def ranking_metrics(
    reward_S: Float[Tensor, " S"], share_SS: Float[Tensor, "S S"], batch: Batch
) -> dict[str, Float[Tensor, ""]]:
    """Means over the comparisons of each prompt and over its answers, summed over prompts; a tie is half right."""
    margin_SS = reward_S[:, None] - reward_S[None, :]
    compared_S = ((share_SS.sum(1) + share_SS.sum(0)) > 0).to(reward_S.dtype)
    answers_S = compared_S.new_zeros(len(compared_S)).index_add(0, batch.group, compared_S)[batch.group]
    return {
        "rewards/margin": (margin_SS * share_SS).sum(),
        "rewards/accuracy": ((margin_SS.sign() + 1) / 2 * share_SS).sum(),
        "rewards/mean": (reward_S * compared_S / answers_S.clamp(min=1)).sum(),
    }


def reward_figures(pairs: Pairs) -> dict[str, Float[Tensor, " P"]]:
    margin_P = pairs.chosen_P - pairs.rejected_P
    return {
        "rewards/chosen": pairs.chosen_P,
        "rewards/rejected": pairs.rejected_P,
        "rewards/margin": margin_P,
        "rewards/accuracy": (margin_P.sign() + 1) / 2,
        "rewards/mean": (pairs.chosen_P + pairs.rejected_P) / 2,
    }


def values_of(policy: Scores) -> Float[Tensor, "K C"]:
    assert policy.values is not None, "a loss that reads values is given those of a head"
    return policy.values


def rewards_of(policy: Scores) -> Float[Tensor, " K"]:
    """The first, and usually only, output of the head."""
    return values_of(policy)[:, 0]
