"""A frozen linear layer whose weight is held in few bits and expanded for each product; no copy waits for backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tunesmith.models.quantized.packed import Packed, whole
from tunesmith.models.scratch import scratch
from tunesmith.models.spectral import Factors
from tunesmith.track.clock import current


class QuantizedLinear(nn.Linear):
    """Its `weight` is no parameter: whoever reads it gets it expanded, in the type of the model."""

    def __init__(self, packed: Packed, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = packed.shape
        self.packed, self.dtype = packed, dtype
        self.beginning: Factors | None = None  # A and B that an adapter is to begin with (LoftQ)
        self.taken: Factors | None = None  # A and s B that were taken out before the weight was quantised
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return whole(self.packed, self.dtype)

    def forward(self, input: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        rows = input.reshape(-1, self.in_features)
        out = FrozenProduct.apply(rows, self.packed)
        assert isinstance(out, Tensor)
        return (out if self.bias is None else out + self.bias).view(*input.shape[:-1], -1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Codes and constants go to another device, and keep their types when the model's changes."""
        moved = fn(torch.empty(0, dtype=self.dtype, device=self.packed.device))
        self.dtype = moved.dtype
        if moved.device != self.packed.device:
            self.packed = self.packed.moved(lambda each: each.to(moved.device))
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.packed.settings.told()}"


class FrozenProduct(torch.autograd.Function):
    """y = x W^T with W expanded when it is used."""

    @staticmethod
    def forward(ctx, x, packed):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.packed, ctx.mark = packed, current()
        return x @ expanded(packed, x).T

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        with ctx.mark:
            return grad @ expanded(ctx.packed, grad), None


Frozen = Tensor | Packed  # a frozen weight, in full or not


def frozen_of(layer: nn.Linear) -> Frozen:
    return layer.packed if isinstance(layer, QuantizedLinear) else layer.weight


def expanded(frozen: Frozen, like: Tensor) -> Float[Tensor, "O I"]:
    """The weight in full, for products with `like`; of a packed one until the next call."""
    if isinstance(frozen, Tensor):
        return frozen
    return frozen.expand(scratch("expanded", frozen.shape, like))


@torch.no_grad()
def in_full(layer: QuantizedLinear, dtype: torch.dtype) -> nn.Linear:
    """An ordinary layer with the same weight."""
    with torch.device("meta"):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
    plain.weight = nn.Parameter(whole(layer.packed, dtype), requires_grad=False)
    plain.bias = layer.bias
    return plain
