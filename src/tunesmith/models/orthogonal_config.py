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
    scatter: ClassVar[float] = 1.4
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


class BoftConfig(TargetedConfig):
    """Rotates what goes into a layer by a product of sparse rotations, as a butterfly (arXiv:2311.06243)."""

    title: ClassVar[str] = "BOFT"
    paper: ClassVar[str] = "arXiv:2311.06243"
    scatter: ClassVar[float] = 1.4
    method: Literal["boft"] = Field(default="boft", description=METHOD)
    block: Annotated[int, Field(ge=2, le=1024)] = Field(
        default=8,
        description="Size of a rotated block; block x 2^(factors - 1) must divide the inputs of every target.",
    )
    factors: Annotated[int, Field(ge=1, le=16)] = Field(
        default=2, description="Rotations one after another, each over blocks twice as far apart; 1: OFT."
    )

    def told(self) -> str:
        return f"{self.title}, {self.factors} factors, blocks of {self.block}, on {self.places()}"

    def count(self, name: str, outputs: int, inputs: int) -> int:
        return self.factors * inputs * self.block + outputs

    def kept_for(self, name: str, outputs: int, inputs: int) -> float:
        return self.factors * inputs + outputs

    def misfit(self, outputs: int, inputs: int) -> Misfit | None:
        if fits(inputs, self.block, self.factors):
            return None
        if self.factors > 1 and inputs % 2**self.factors:
            return Misfit(
                "E357", f"its {inputs} inputs are no multiple of 2^{self.factors} for as many factors", "factors"
            )
        told = f"blocks of {self.block} with {self.factors} factors do not divide its {inputs} inputs"
        return Misfit("E356", told, "block")

    def suits(self, shapes: set[tuple[int, int]]) -> int | None:
        """None as well where some shapes want other blocks and some fewer factors."""
        sizes = {inputs for _, inputs in shapes}
        fields = {misfit.field for shape in shapes if (misfit := self.misfit(*shape)) is not None}
        if fields == {"block"}:
            blocks = [each for each in range(2, 1025) if all(fits(size, each, self.factors) for size in sizes)]
            return min(blocks, key=lambda each: (abs(each - self.block), each), default=None)
        if fields == {"factors"}:
            counts = range(1, self.factors)
            return max((each for each in counts if all(fits(size, self.block, each) for size in sizes)), default=None)
        return None


def fits(inputs: int, block: int, factors: int) -> bool:
    """Whether a butterfly of so many factors can have blocks of this size; of several it pairs halves of blocks."""
    return inputs % (block * 2 ** (factors - 1)) == 0 and (factors == 1 or block % 2 == 0)
