"""The settings of LoftQ."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tunesmith.models.adapter_config import METHOD, LowRankConfig


class LoftqConfig(LowRankConfig):
    """LoRA that begins with what quantising the base took away (arXiv:2310.08659)."""

    title: ClassVar[str] = "LoftQ"
    paper: ClassVar[str] = "arXiv:2310.08659"
    method: Literal["loftq"] = Field(default="loftq", description=METHOD)
    rounds: Annotated[int, Field(ge=1, le=5)] = Field(
        default=1, description="Times that the weights are quantised and the adapter fitted to the rest."
    )
    iterations: Annotated[int, Field(ge=0, le=64)] = Field(
        default=4,
        description="Subspace iterations of a randomised decomposition; 0: the exact one, slow if wide.",
    )

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)
