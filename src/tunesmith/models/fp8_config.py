"""Settings of products with trained weights in 8 bits, and which layers they are for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from tunesmith.config import Config

MULTIPLE = 16  # numbers that the products of a GPU take at once
Format = Literal["e4m3", "e5m2"]


class Fp8Config(Config):
    """Products with trained weights in float8; the weights themselves and their masters stay as they are."""

    scaling: Literal["rowwise", "tensorwise"] = Field(
        default="rowwise",
        description="What shares a scale, its largest figure brought to the end of the range: each row of a matrix, or "
        "the whole of it, which is coarser and somewhat cheaper.",
    )
    gradients: Literal["auto", "e4m3", "e5m2"] = Field(
        default="auto",
        description="Format of gradients: e4m3 (4 bits, 448 down to 0.002) or e5m2 (3 bits, 57,344 down to 0.00002); "
        "auto: e4m3 by row, e5m2 by tensor. What goes forward is in e4m3.",
    )
    smallest: Annotated[int, Field(ge=MULTIPLE)] = Field(
        default=1024,
        description="Fewest inputs and outputs of a linear layer whose products are in 8 bits; below that bringing "
        "figures into 8 bits takes longer than it saves. Layers that read the same rows count together.",
    )
    emulate: bool = Field(
        default=False,
        description="Round as a GPU would and multiply in fp32: slower than bf16, on every machine, to see what fp8 "
        "does to the loss.",
    )

    @property
    def of_gradients(self) -> Format:
        if self.gradients != "auto":
            return self.gradients
        return "e4m3" if self.scaling == "rowwise" else "e5m2"

    def takes(self, shapes: Sequence[tuple[int, int]]) -> bool:
        """Whether layers of shapes (outputs, inputs) that read the same rows are large enough, and all in sixteens."""
        whole = all(outputs % MULTIPLE == 0 and inputs % MULTIPLE == 0 for outputs, inputs in shapes)
        return whole and min(sum(outputs for outputs, _ in shapes), shapes[0][1]) >= self.smallest

    def told(self) -> str:
        emulated = ", emulated" if self.emulate else ""
        scaled = "by row" if self.scaling == "rowwise" else "by tensor"
        return f"{scaled}, e4m3, gradients in {self.of_gradients}{emulated}"
