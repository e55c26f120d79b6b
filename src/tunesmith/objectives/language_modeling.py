"""Losses on the log-probability of given tokens."""

from typing import ClassVar, Literal

from pydantic import Field

from tunesmith.objectives.base import NOTHING, Objective
from tunesmith.types import Batch, Context, Loss, Scores


class SFT(Objective):
    """Negative log-likelihood of the weighted tokens, sum of w * -log p (arXiv:2203.02155 section 3.1)."""

    name: Literal["sft"] = Field(default="sft", description="Next-token loss on the tokens data.train_on selects.")
    unit: ClassVar = "token"
    metric_names: ClassVar = ("accuracy",)
    paper: ClassVar[str] = "arXiv:2203.02155"

    def __call__(self, policy: Scores, batch: Batch, context: Context = NOTHING) -> Loss:
        loss = -(batch.weight * policy.logprobs).sum()
        metrics = {"accuracy": (batch.weight * policy.correct).sum()}
        return Loss(loss, metrics)

    def count(self, batch: Batch) -> float:
        return batch.weight.sum().item()
