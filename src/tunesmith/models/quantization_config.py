"""The settings of frozen weights that are held in few bits, and the bytes that they take."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tunesmith.config import Config

BLOCK = 64  # weights that share a constant: the largest of their sizes
CONSTANTS = 256  # constants that share one of their own
NAME = "How the linear layers of a frozen base are held."


class QuantizationConfig(Config):
    """What all kinds have in common."""

    title: ClassVar[str]
    name: str

    @property
    def word(self) -> str:
        """The word by which a recipe names it."""
        return self.name

    def told(self) -> str:
        """A few words for a plan."""
        return self.title

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        """What a weight of (outputs, inputs) takes."""
        raise NotImplementedError


class Unquantized(QuantizationConfig):
    """Every weight in the model's own type."""

    title: ClassVar[str] = "exact"
    name: Literal["none"] = Field(default="none", description=NAME)  # pyright: ignore[reportIncompatibleVariableOverride]


class FourBits(QuantizationConfig):
    """16 values, times a constant for each block of 64 weights."""

    double_quantization: bool = Field(
        default=False, description="Hold the constants of blocks in 8 bits: 0.127 instead of 0.5 bits per weight."
    )

    def told(self) -> str:
        return self.title + (" with double quantisation" if self.double_quantization else "")

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        count = math.prod(shape)
        blocks = -(-count // BLOCK)
        constants = blocks + 4 * -(-blocks // CONSTANTS) + 4 if self.double_quantization else 4 * blocks
        return -(-count // 2) + constants


class Nf4(FourBits):
    """Values for weights that are spread as the normal distribution (arXiv:2305.14314)."""

    title: ClassVar[str] = "nf4"
    name: Literal["nf4"] = Field(default="nf4", description=NAME)  # pyright: ignore[reportIncompatibleVariableOverride]
    double_quantization: bool = Field(
        default=True, description="Hold the constants of blocks in 8 bits: 0.127 instead of 0.5 bits per weight."
    )


class Fp4(FourBits):
    """The values of a floating-point number of 4 bits."""

    title: ClassVar[str] = "fp4"
    name: Literal["fp4"] = Field(default="fp4", description=NAME)  # pyright: ignore[reportIncompatibleVariableOverride]


class Int8(QuantizationConfig):
    """255 steps for each output, up to its largest weight."""

    title: ClassVar[str] = "int8"
    name: Literal["int8"] = Field(default="int8", description=NAME)  # pyright: ignore[reportIncompatibleVariableOverride]

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        return math.prod(shape) + 4 * shape[0]


Quantization = Annotated[Unquantized | Nf4 | Fp4 | Int8, Field(discriminator="name")]
