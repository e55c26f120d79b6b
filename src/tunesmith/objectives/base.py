"""What an objective is: settings that turn scores into a summed loss."""

from typing import ClassVar, Literal

from tunesmith.config import Config
from tunesmith.types import Batch, Loss, Scores


class Objective(Config):
    """The settings ARE the objective; calling it returns a SUM, which the step divides once by the global count."""

    unit: ClassVar[Literal["token", "sequence", "pair"]]
    needs: ClassVar[frozenset[str]] = frozenset()  # streams it reads
    metric_names: ClassVar[tuple[str, ...]] = ()  # keys of Loss.metrics, the same in every batch
    paper: ClassVar[str]

    def __call__(self, policy: Scores, batch: Batch) -> Loss:
        raise NotImplementedError

    def count(self, batch: Batch) -> float:
        """How many units the batch holds; known before the forward pass."""
        raise NotImplementedError
