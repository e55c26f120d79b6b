"""What an objective is: settings that turn scores into a summed loss."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tunesmith.config import Config
from tunesmith.types import Batch, Context, Kind, Loss, Reads, Scores

NOTHING = Context()


class Objective(Config):
    """The settings ARE the objective; calling it returns a SUM, which the step divides once by the global count."""

    coefficient: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="Factor of this loss in a list of objectives."
    )
    unit: ClassVar[Literal["token", "sequence", "pair", "ranking"]]
    kind: ClassVar[Kind] = "sequence"  # the records it learns from
    reads: ClassVar[Reads] = "logprobs"
    needs: ClassVar[frozenset[str]] = frozenset()  # streams it reads
    named_labels: ClassVar[bool] = False  # whether labels are names of classes and not numbers
    metric_names: ClassVar[tuple[str, ...]] = ()  # keys of Loss.metrics, the same in every batch
    paper: ClassVar[str]
    looks_ahead: ClassVar[bool] = False  # whether its loss needs `glance` over the whole step first

    @property
    def title(self) -> str:
        """The word by which a recipe names it."""
        return type(self).model_fields["name"].default

    def __call__(self, policy: Scores, batch: Batch, context: Context = NOTHING) -> Loss:
        raise NotImplementedError

    def count(self, batch: Batch) -> float:
        """How many units the batch holds; known before the forward pass."""
        raise NotImplementedError

    def glance(self, policy: Scores, batch: Batch) -> Float[Tensor, "R C"]:
        """What the losses of the step need of this microbatch; called without gradient when `looks_ahead`.

        `batch` is the microbatch, or its `mismatched` when it has one, and `policy` the scores of that batch.
        """
        return torch.zeros(0, 1)

    def report(self, means: Mapping[str, float]) -> dict[str, float]:
        """The metrics as they are shown, of the sums of a whole step divided by its count.

        What is a mean over a part of the units (the good answers) is put right here; without such units it is left out.
        """
        return dict(means)

    def remember(self, memory: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
        """The memory after a step with these reported metrics; saved in checkpoints, shared by all objectives."""
        return dict(memory)

    def start_loss(self) -> float | None:
        """The loss of every unit when the policy equals the reference; None when that says nothing."""
        return None


def sequence_sums(values_K: Float[Tensor, " K"], batch: Batch) -> Float[Tensor, " S"]:
    """Sum of a figure of scored tokens over each sequence, added up in fp64: answers are thousands of tokens long."""
    sums_S = torch.zeros(len(batch.group), dtype=torch.float64, device=values_K.device)
    sums_S = sums_S.index_add(0, batch.sequence, values_K.double())
    return sums_S.to(torch.promote_types(values_K.dtype, torch.float32))


def sequence_lengths(batch: Batch) -> Float[Tensor, " S"]:
    """Scored tokens of each sequence."""
    return sequence_sums(torch.ones_like(batch.weight), batch)
