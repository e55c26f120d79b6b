"""The settings of AdaLoRA."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tunesmith.models.adapter_config import METHOD, Misfit, TargetedConfig


class AdaloraConfig(TargetedConfig):
    """W + s P Λ Q, whose ranks go to the layers where they matter while it is trained (arXiv:2303.10512)."""

    title: ClassVar[str] = "AdaLoRA"
    paper: ClassVar[str] = "arXiv:2303.10512"
    rates: ClassVar[tuple[float, float]] = (5e-5, 5e-3)
    usual_rate: ClassVar[tuple[str, float]] = ("5e-4 to 2e-3", 1e-3)
    averages: ClassVar[int] = 2
    method: Literal["adalora"] = Field(default="adalora", description=METHOD)
    rank: Annotated[int, Field(ge=1, le=4096)] = Field(default=8, description="Mean rank that is left in the end.")
    start: Annotated[float, Field(ge=1, le=16)] = Field(
        default=1.5, description="Rank of every layer at first, in units of rank."
    )
    alpha: Annotated[float, Field(gt=0)] = Field(
        default=32.0, description="Scale: alpha by the first rank, also when ranks are cut."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Dropout on the adapter's input.")
    tinit: Annotated[float, Field(ge=0)] = Field(
        default=0.1, description="Steps before ranks are cut; below 1: a share of the run."
    )
    tfinal: Annotated[float, Field(ge=0)] = Field(
        default=0.3, description="Steps at the end whose ranks stay; below 1: a share of the run."
    )
    every: Annotated[int, Field(ge=1)] = Field(default=10, description="Steps from one cut to the next.")
    beta1: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.85, description="Of the mean importance.")
    beta2: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.85, description="Of its mean uncertainty.")
    orthogonality: Annotated[float, Field(ge=0)] = Field(
        default=0.1, description="Coefficient of the sum of |PᵀP - I|² + |QQᵀ - I|² over layers, in the loss."
    )

    @property
    def drops(self) -> float:
        return self.dropout

    @property
    def first_rank(self) -> int:
        return round(self.rank * self.start)

    def phases(self, total: int) -> tuple[int, int]:
        """The last step before ranks are cut and the step of the last cut, in a run of `total` steps."""
        before, behind = (math.ceil(each * total) if each < 1 else int(each) for each in (self.tinit, self.tfinal))
        return before, total - behind

    def told(self) -> str:
        return f"{self.title}, ranks from {self.first_rank} to a mean of {self.rank}, on {self.places()}"

    def count(self, name: str, outputs: int, inputs: int) -> int:
        return self.first_rank * (outputs + inputs + 1)

    def kept_for(self, name: str, outputs: int, inputs: int) -> float:
        return self.first_rank

    def misfit(self, outputs: int, inputs: int) -> Misfit | None:
        limit = min(outputs, inputs)
        if self.first_rank <= limit:
            return None
        return Misfit("E310", f"a first rank of {self.first_rank} is above its dimension {limit}", "rank")

    def suits(self, shapes: set[tuple[int, int]]) -> int | None:
        limit = min(min(shape) for shape in shapes)
        return max((rank for rank in range(1, limit + 1) if round(rank * self.start) <= limit), default=None)
