"""The settings of methods that rotate what goes into a linear layer."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tunesmith.models.adapter_config import METHOD, Misfit, TargetedConfig


class OftConfig(TargetedConfig):
    """Rotates blocks of what goes into a layer, exactly orthogonal (arXiv:2306.07280)."""

    title: ClassVar[str] = "OFT"
    paper: ClassVar[str] = "arXiv:2306.07280"
    keeps_inputs: ClassVar[bool] = False
    keeps_wide: ClassVar[bool] = True
    method: Literal["oft"] = Field(default="oft", description=METHOD)
    block: Annotated[int, Field(ge=2, le=4096)] = Field(
        default=32, description="Size of a rotated block; it must divide the inputs of every target."
    )
    constrained: bool = Field(default=False, description="Keep rotations near none (COFT).")
    epsilon: Annotated[float, Field(gt=0)] = Field(default=6e-5, description="How near, with constrained.")
    neumann: bool = Field(
        default=False, description="PEFT's series of five terms in place of the exact rotation: faster, not orthogonal."
    )

    def told(self) -> str:
        return f"{self.title}, blocks of {self.block}, on {self.places()}"

    def count(self, name: str, outputs: int, inputs: int) -> int:
        return inputs // self.block * (self.block * (self.block - 1) // 2)

    def kept_for(self, name: str, outputs: int, inputs: int) -> float:
        return inputs  # what is rotated

    def misfit(self, outputs: int, inputs: int) -> Misfit | None:
        if inputs % self.block == 0:
            return None
        return Misfit("E311", f"blocks of {self.block} do not divide its {inputs} inputs", "block")

    def suits(self, shapes: set[tuple[int, int]]) -> int | None:
        common = math.gcd(*(inputs for _, inputs in shapes))
        sizes = [size for size in range(2, min(common, 4096) + 1) if common % size == 0]
        return min(sizes, key=lambda size: (abs(size - self.block), size), default=None)
