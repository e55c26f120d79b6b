"""Losses on the log-probability of given tokens."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tunesmith.objectives.base import NOTHING, Objective
from tunesmith.types import Batch, Context, Loss, Scores


class SFT(Objective):
    """Negative log-likelihood of the weighted tokens, sum of w * -log p (arXiv:2203.02155 section 3.1).

    Of answers that were compared or judged, only the best and the good ones are trained (`Batch.imitated`).
    With `z_loss` a share of (log Z)^2 is added, which keeps logits from drifting (arXiv:2204.02311 section 5).
    """

    name: Literal["sft"] = Field(default="sft", description="Next-token loss on the tokens data.train_on selects.")
    z_loss: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="Adds this times (log Z)^2 of every scored token, about 1e-4; 0: off."
    )
    unit: ClassVar = "token"
    metric_names: ClassVar = ("accuracy", "z_loss")
    paper: ClassVar[str] = "arXiv:2203.02155"

    def __call__(self, policy: Scores, batch: Batch, context: Context = NOTHING) -> Loss:
        weight_K = imitated_weight(batch)
        loss = -(weight_K * policy.logprobs).sum()
        spread = torch.zeros_like(loss.detach())
        if self.z_loss > 0:
            assert policy.log_z is not None, "a model that is scored tells log Z"
            extra = self.z_loss * (weight_K * policy.log_z.square()).sum()
            loss, spread = loss + extra, extra.detach()
        return Loss(loss, {"accuracy": (weight_K * policy.correct).sum(), "z_loss": spread})

    def report(self, means: Mapping[str, float]) -> dict[str, float]:
        return {name: mean for name, mean in means.items() if name != "z_loss" or self.z_loss > 0}

    def count(self, batch: Batch) -> float:
        return imitated_weight(batch).sum().item()


def imitated_weight(batch: Batch) -> Float[Tensor, " K"]:
    """The weight of each scored token, 0 where its answer is not to be imitated."""
    return batch.weight if batch.imitated is None else batch.weight * batch.imitated[batch.sequence]
