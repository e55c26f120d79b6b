"""What an objective is: settings that turn scores into a summed loss."""

from typing import ClassVar, Literal

from tunesmith.config import Config
from tunesmith.types import Batch, Loss, Scores


class Objective(Config):
    """The settings ARE the objective. Calling it returns a SUM over its unit; the step divides once by the global count."""

    unit: ClassVar[Literal["token", "sequence", "pair"]]
    needs: ClassVar[frozenset[str]] = frozenset()  # streams it reads
    paper: ClassVar[str]

    def __call__(self, policy: Scores, batch: Batch) -> Loss:
        raise NotImplementedError
