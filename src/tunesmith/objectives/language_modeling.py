"""Losses on the log-probability of given tokens."""

from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tunesmith.objectives.base import NOTHING, Objective
from tunesmith.types import Batch, Context, Loss, Scores


class SFT(Objective):
    """Negative log-likelihood of the weighted tokens, sum of w * -log p (arXiv:2203.02155 section 3.1).

    Of answers that were compared or judged, only the best and the good ones are trained (`Batch.imitated`).
    """

    name: Literal["sft"] = Field(default="sft", description="Next-token loss on the tokens data.train_on selects.")
    unit: ClassVar = "token"
    metric_names: ClassVar = ("accuracy",)
    paper: ClassVar[str] = "arXiv:2203.02155"

    def __call__(self, policy: Scores, batch: Batch, context: Context = NOTHING) -> Loss:
        weight_K = imitated_weight(batch)
        loss = -(weight_K * policy.logprobs).sum()
        metrics = {"accuracy": (weight_K * policy.correct).sum()}
        return Loss(loss, metrics)

    def count(self, batch: Batch) -> float:
        return imitated_weight(batch).sum().item()


def imitated_weight(batch: Batch) -> Float[Tensor, " K"]:
    """The weight of each scored token, 0 where its answer is not to be imitated."""
    return batch.weight if batch.imitated is None else batch.weight * batch.imitated[batch.sequence]
