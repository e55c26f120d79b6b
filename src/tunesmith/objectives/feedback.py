"""Losses on single answers that were found good or bad."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tunesmith.objectives.base import NOTHING, Objective, sequence_lengths, sequence_sums
from tunesmith.objectives.logratios import (
    BCO_MEAN,
    BCO_SHIFT,
    REFERENCE,
    apo_zero_bad,
    apo_zero_good,
    bco_bad,
    bco_good,
    running_shift,
)
from tunesmith.objectives.pairs import Beta
from tunesmith.types import Batch, Context, Kind, Loss, Scores

FEEDBACK_METRICS = (
    "rewards/good",
    "rewards/bad",
    "logps/good",
    "logps/bad",
    "length/good",
    "length/bad",
    "share/good",
    "share/bad",
    "kl",
)
Weight = Annotated[float, Field(ge=0, le=1000)]


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers with their log-ratio to the reference, and whether they were found good."""

    logps_S: Float[Tensor, " S"]
    ratio_S: Float[Tensor, " S"]  # log policy - log reference
    length_S: Float[Tensor, " S"]
    good_S: Float[Tensor, " S"]  # 1 of good answers, 0 of bad ones and of those with nothing scored
    bad_S: Float[Tensor, " S"]


def answers_of(policy: Scores, batch: Batch) -> Answers:
    logps_S, length_S = sequence_sums(policy.logprobs, batch), sequence_lengths(batch)
    ratio_S = sequence_sums(policy.logprobs - batch.streams[REFERENCE].detach(), batch)
    scored_S = (length_S > 0).to(logps_S.dtype)
    good_S = (batch.labels > 0).to(logps_S.dtype)
    return Answers(logps_S, ratio_S, length_S, scored_S * good_S, scored_S * (1 - good_S))


class FeedbackObjective(Objective):
    """Learns from single answers and whether they were good; the unit is an answer with scored tokens.

    Means per class are reported by dividing by the classes' shares of the step; a class that is absent has none.
    """

    beta: Beta = Field(default=0.1, description="Factor of the log-ratios; small lets the policy leave the reference.")
    kind: ClassVar[Kind] = "feedback"
    unit: ClassVar = "sequence"
    needs: ClassVar[frozenset[str]] = frozenset({REFERENCE})
    metric_names: ClassVar = FEEDBACK_METRICS

    def count(self, batch: Batch) -> float:
        return (sequence_lengths(batch) > 0).sum().item()

    def __call__(self, policy: Scores, batch: Batch, context: Context = NOTHING) -> Loss:
        answers = answers_of(policy, batch)
        good_S, bad_S = self.losses(answers.ratio_S, context)
        metrics = feedback_metrics(answers, self.beta) | self.figures(answers, context)
        return Loss((good_S * answers.good_S + bad_S * answers.bad_S).sum(), metrics)

    def losses(self, ratio_S: Float[Tensor, " S"], context: Context) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
        """The loss of each answer were it good, and were it bad."""
        raise NotImplementedError

    def figures(self, answers: Answers, context: Context) -> dict[str, Tensor]:
        """Sums of its own beside those of all losses on feedback."""
        return {}

    def report(self, means: Mapping[str, float]) -> dict[str, float]:
        shown = {name: value for name, value in means.items() if not is_of_a_class(name)}
        for name in filter(is_of_a_class, means):
            share = means[f"share/{name.rpartition('/')[2]}"]
            if share > 0:
                shown[name] = means[name] / share
        if "rewards/good" in shown and "rewards/bad" in shown:
            shown["rewards/margin"] = shown["rewards/good"] - shown["rewards/bad"]
        return shown


class KTO(FeedbackObjective):
    """Prospect-theoretic loss on good and bad answers (arXiv:2402.01306 eq. 8).

    The point of reference z0 is the mean log-ratio of answers to other prompts over the whole step, not below 0 and
    without gradient; it comes from `batch.mismatched`.
    """

    name: Literal["kto"] = Field(
        default="kto", description="Good answers above, bad answers below the mean of mismatched ones."
    )
    lambda_good: Weight = Field(default=1.0, description="Weight of good answers.")
    lambda_bad: Weight = Field(default=1.0, description="Weight of bad answers.")
    looks_ahead: ClassVar[bool] = True
    metric_names: ClassVar = (*FEEDBACK_METRICS, "kto/z0")
    paper: ClassVar[str] = "arXiv:2402.01306"

    def glance(self, policy: Scores, batch: Batch) -> Float[Tensor, "R 1"]:
        """Log-ratios of the mismatched answers."""
        answers = answers_of(policy, batch)
        return answers.ratio_S[answers.length_S > 0].detach()[:, None]

    def __call__(self, policy: Scores, batch: Batch, context: Context = NOTHING) -> Loss:
        assert batch.mismatched is not None, "z0 is the mean over answers to other prompts"
        return super().__call__(policy, batch, context)

    def losses(self, ratio_S: Float[Tensor, " S"], context: Context) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
        z0 = self.point_of_reference(context)
        good_S, bad_S = kto_good(ratio_S, z0, self.beta), kto_bad(ratio_S, z0, self.beta)
        return self.lambda_good * good_S, self.lambda_bad * bad_S

    def figures(self, answers: Answers, context: Context) -> dict[str, Tensor]:
        return {"kto/z0": self.point_of_reference(context) * (answers.good_S + answers.bad_S).sum()}

    def point_of_reference(self, context: Context) -> Float[Tensor, ""]:
        assert context.rows is not None, "a step gathers the rows of a loss that looks ahead"
        return kto_z0(context.rows.flatten())

    def start_loss(self) -> float | None:
        return self.lambda_good / 2 if self.lambda_good == self.lambda_bad else None


class APOZeroUnpaired(FeedbackObjective):
    """Anchored preference optimisation: good answers up, bad answers down (arXiv:2408.06266)."""

    name: Literal["apo_zero_unpaired"] = Field(
        default="apo_zero_unpaired", description="Anchored: good answers up, bad ones down."
    )
    paper: ClassVar[str] = "arXiv:2408.06266"

    def losses(self, ratio_S: Float[Tensor, " S"], context: Context) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
        return apo_zero_good(self.beta * ratio_S), apo_zero_bad(self.beta * ratio_S)

    def start_loss(self) -> float | None:
        return 0.5


class BCOUnpaired(FeedbackObjective):
    """Binary classifier optimisation (arXiv:2404.04656).

    The shift is the running mean of the two classes' mean rewards in earlier steps, 0 at the start; a step that lacks a
    class leaves it as it is.
    """

    name: Literal["bco_unpaired"] = Field(
        default="bco_unpaired", description="Tells good from bad answers by a logistic classifier."
    )
    decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.99, description="Share of the running mean of rewards that a step keeps."
    )
    metric_names: ClassVar = (*FEEDBACK_METRICS, "bco/good", "bco/bad", BCO_SHIFT)
    paper: ClassVar[str] = "arXiv:2404.04656"

    def losses(self, ratio_S: Float[Tensor, " S"], context: Context) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
        shift = context.memory.get(BCO_SHIFT, 0.0)
        return bco_good(self.beta * ratio_S, shift), bco_bad(self.beta * ratio_S, shift)

    def figures(self, answers: Answers, context: Context) -> dict[str, Tensor]:
        reward_S = self.beta * answers.ratio_S.detach()
        units = (answers.good_S + answers.bad_S).sum()
        return {
            "bco/good": (reward_S * answers.good_S).sum(),
            "bco/bad": (reward_S * answers.bad_S).sum(),
            BCO_SHIFT: context.memory.get(BCO_SHIFT, 0.0) * units,
        }

    def report(self, means: Mapping[str, float]) -> dict[str, float]:
        shown = super().report(means)
        good, bad = shown.pop("bco/good", None), shown.pop("bco/bad", None)
        return shown if good is None or bad is None else {**shown, BCO_MEAN: (good + bad) / 2}

    def remember(self, memory: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
        return dict(memory) if BCO_MEAN not in metrics else running_shift(memory, metrics, self.decay)

    def start_loss(self) -> float | None:
        return math.log(2)


def is_of_a_class(name: str) -> bool:
    """Whether a metric is summed over the good or the bad answers alone."""
    return name.endswith(("/good", "/bad")) and not name.startswith("share/")


def feedback_metrics(answers: Answers, beta: float) -> dict[str, Tensor]:
    """The sums named in FEEDBACK_METRICS."""
    classes = {"good": answers.good_S, "bad": answers.bad_S}
    figures = {
        "rewards": beta * answers.ratio_S.detach(),
        "logps": answers.logps_S.detach(),
        "length": answers.length_S,
        "share": torch.ones_like(answers.length_S),
    }
    sums = {
        f"{figure}/{name}": (value_S * of_S).sum()
        for figure, value_S in figures.items()
        for name, of_S in classes.items()
    }
    return sums | {"kl": (answers.ratio_S.detach() * (answers.good_S + answers.bad_S)).sum()}


def kto_z0(mismatched_R: Float[Tensor, " R"]) -> Float[Tensor, ""]:
    """max(0, mean log-ratio of mismatched answers), without gradient (arXiv:2402.01306 section 4.1)."""
    mean = mismatched_R.detach().mean() if len(mismatched_R) else mismatched_R.new_zeros(())
    return mean.clamp(min=0)


def kto_good(ratio_S: Float[Tensor, " S"], z0: Float[Tensor, ""] | float, beta: float) -> Float[Tensor, " S"]:
    """1 - sigma(beta (r - z0)) (arXiv:2402.01306 eq. 8)."""
    return torch.sigmoid(beta * (z0 - ratio_S))


def kto_bad(ratio_S: Float[Tensor, " S"], z0: Float[Tensor, ""] | float, beta: float) -> Float[Tensor, " S"]:
    """1 - sigma(beta (z0 - r)) (arXiv:2402.01306 eq. 8)."""
    return torch.sigmoid(beta * (ratio_S - z0))
