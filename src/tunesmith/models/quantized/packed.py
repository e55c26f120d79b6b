"""A frozen weight in few bits: made from a weight, expanded whenever a product reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from tunesmith.models.eight_bit import quantized
from tunesmith.models.native import expand
from tunesmith.models.quantization_config import BLOCK, FourBits, QuantizationConfig
from tunesmith.models.quantized import bitsandbytes
from tunesmith.models.quantized.codes import (
    decode,
    decode_constants,
    encode,
    encode_constants,
    table_of,
)
from tunesmith.models.scratch import scratch

ROWS = 1024  # of a weight that are quantised to 8 bits at once


class Packed(Protocol):
    """A weight (O, I) that is not held in full."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def settings(self) -> QuantizationConfig: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def nbytes(self) -> int: ...

    def expand(self, out: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
        """out = the weight, formed in fp32 and rounded once to the type of `out`."""
        ...

    def moved(self, move: Callable[[Tensor], Tensor]) -> Packed:
        """The same with its tensors elsewhere."""
        ...

    def is_finite(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Constants:
    """Those of the blocks, or where there are `scales` their codes in 8 bits."""

    values: Float[Tensor, " B"] | UInt8[Tensor, " B"]
    scales: Float[Tensor, " C"] | None = None
    mean: Float[Tensor, " 1"] | None = None

    def tensors(self) -> list[Tensor]:
        return [each for each in (self.values, self.scales, self.mean) if each is not None]

    def expanded(self) -> Float[Tensor, " B"]:
        if self.scales is None or self.mean is None:
            return self.values
        return decode_constants(self.values, self.scales, self.mean)


@dataclass(frozen=True, slots=True)
class Packed4:
    shape: tuple[int, int]
    settings: FourBits
    codes: UInt8[Tensor, " M"]
    constants: Constants

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in (self.codes, *self.constants.tensors()))

    def expand(self, out: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
        constants, kind = self.constants.expanded(), self.settings.name
        if expand.serves(out):
            expand.expand_4(self.codes, table_of(kind), constants, BLOCK, out)
        elif bitsandbytes.serves(out):
            bitsandbytes.expand(self.codes, constants, kind, out)
        else:
            decode(self.codes, constants, kind, out.view(-1))
        return out

    def moved(self, move: Callable[[Tensor], Tensor]) -> Packed4:
        held = self.constants
        found = [None if each is None else move(each) for each in (held.scales, held.mean)]
        return replace(self, codes=move(self.codes), constants=Constants(move(held.values), *found))

    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.constants.expanded()).all())


@dataclass(frozen=True, slots=True)
class Packed8:
    settings: QuantizationConfig
    codes: Int8[Tensor, "O I"]
    constants: Float[Tensor, " O"]

    @property
    def shape(self) -> tuple[int, int]:
        outputs, inputs = self.codes.shape
        return outputs, inputs

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.constants.nbytes

    def expand(self, out: Float[Tensor, "O I"]) -> Float[Tensor, "O I"]:
        if expand.serves(out):
            expand.expand_8(self.codes, self.constants, out)
            return out
        for codes, constants, rows in zip(
            *(each.split(ROWS) for each in (self.codes, self.constants, out)), strict=True
        ):
            rows.copy_(codes.float().mul_(constants[:, None]))
        return out

    def moved(self, move: Callable[[Tensor], Tensor]) -> Packed8:
        return replace(self, codes=move(self.codes), constants=move(self.constants))

    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.constants).all())


@torch.no_grad()
def pack(weight: Float[Tensor, "O I"], settings: QuantizationConfig) -> Packed:
    """The nearest codes; the weight may be of any type."""
    outputs, inputs = weight.shape
    if not isinstance(settings, FourBits):
        return pack_rows(weight, settings)
    codes, constants = encode(weight.reshape(-1), settings.name)
    held = Constants(*encode_constants(constants)) if settings.double_quantization else Constants(constants)
    return Packed4((outputs, inputs), settings, codes, held)


def pack_rows(weight: Float[Tensor, "O I"], settings: QuantizationConfig) -> Packed8:
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    constants = torch.empty(len(weight), device=weight.device)
    for rows, whole, scales in zip(*(each.split(ROWS) for each in (weight, codes, constants)), strict=True):
        found, scale = quantized(scratch("rows", rows.shape, rows, torch.float32).copy_(rows))
        whole.copy_(found[: len(rows), : rows.shape[1]])
        scales.copy_(scale[:, 0])
    return Packed8(settings, codes, constants)


def whole(packed: Packed, dtype: torch.dtype) -> Float[Tensor, "O I"]:
    """The weight in full, in memory of its own."""
    return packed.expand(torch.empty(packed.shape, dtype=dtype, device=packed.device))
