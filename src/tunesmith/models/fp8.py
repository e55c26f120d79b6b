"""Products with trained weights in float8 (arXiv:2209.05433), scaled by the largest figure of each operand just then.

All three products of a linear layer are formed so, forward and backward, and added up in fp32; out comes the type of
the model. Along what is added up, an operand has one scale in a row, or one in all. Nothing is remembered between
steps: the scale of a step follows from its own figures, and a resume is as exact as without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tunesmith.models.fp8_config import MULTIPLE, Fp8Config

TYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
LARGEST = {kind: torch.finfo(kind).max for kind in TYPES.values()}  # 448 and 57,344
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # so that zeros stay zeros


@dataclass(frozen=True, slots=True)
class Scaled:
    """A matrix as values in float8 and the fp32 scale of each row, (N, 1), or of all, ()."""

    values: Float[Tensor, "N K"]
    scale: Float[Tensor, ...]


def quantized(x: Float[Tensor, "N K"], kind: torch.dtype, by_row: bool) -> tuple[Tensor, Tensor]:
    """Values up to the end of the range and their scale; what is not finite makes NaN of its row, or of all."""
    top = x.abs().amax(1, keepdim=True) if by_row else x.abs().amax()
    scale = (top.float() / LARGEST[kind]).clamp(min=SMALLEST_SCALE)
    return (x.float() / scale).clamp(-LARGEST[kind], LARGEST[kind]).to(kind), scale


@cache
def compiled() -> Callable[[Tensor, torch.dtype, bool], tuple[Tensor, Tensor]]:
    """`quantized` as one kernel for all sizes of batch: a GPU would write every step of it to its memory."""
    return torch.compile(quantized, dynamic=True)


@dataclass(frozen=True, slots=True)
class Products8:
    """The three products of a linear layer `x W^T`."""

    settings: Fp8Config

    def product(self, x: Float[Tensor, "T I"], weight: Float[Tensor, "O I"], out: Float[Tensor, "T O"]) -> None:
        """out = x W^T."""
        self.multiply(self.scaled(x), self.scaled(weight), out)

    def of_rows(self, grad: Float[Tensor, "T O"], weight: Float[Tensor, "O I"], out: Float[Tensor, "T I"]) -> None:
        """out = grad W."""
        self.multiply(self.scaled(grad, self.settings.of_gradients), self.scaled(weight.T), out)

    def of_weight(self, grad: Float[Tensor, "T O"], x: Float[Tensor, "T I"]) -> Float[Tensor, "O I"]:
        """grad^T x."""
        out = grad.new_empty(grad.shape[1], x.shape[1])
        self.multiply(self.scaled(grad.T, self.settings.of_gradients), self.scaled(x.T), out)
        return out

    def scaled(self, x: Float[Tensor, "N K"], name: str = "e4m3") -> Scaled:
        """The operand with its rows end to end, filled up with zeros to the numbers that are taken at once."""
        if x.shape[1] % MULTIPLE:
            x = nn.functional.pad(x, (0, -x.shape[1] % MULTIPLE))
        quantize = compiled() if x.is_cuda else quantized
        values, scale = quantize(x, TYPES[name], self.settings.scaling == "rowwise")
        return Scaled(values.contiguous(), scale)

    def multiply(self, left: Scaled, right: Scaled, out: Float[Tensor, "M N"]) -> None:
        """out = left right^T. Gradients stand on the left: a GPU has e5m2 there alone."""
        if not self.settings.emulate:
            scales = left.scale.contiguous(), right.scale.t().contiguous()
            torch.ops.aten._scaled_mm.out(left.values, right.values.T, *scales, out_dtype=out.dtype, out=out)
            return
        sums = left.values.float() @ right.values.float().T
        out.copy_(sums.mul_(left.scale).mul_(right.scale.t()))


class Fp8Linear(nn.Linear):
    """A linear layer with the same parameters under the same names, whose products are in 8 bits."""

    def __init__(self, layer: nn.Linear, products: Products8) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.products = products

    def forward(self, input: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        out = TrainedProduct.apply(input.reshape(-1, self.in_features), self.weight, self.products)
        assert isinstance(out, Tensor)
        return (out if self.bias is None else out + self.bias).view(*input.shape[:-1], -1)

    def exact(self) -> nn.Linear:
        """A plain linear layer with these parameters."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain.train(self.training)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, fp8 {self.products.settings.told()}"


class TrainedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, products):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x, weight)
        ctx.products = products
        out = x.new_empty(len(x), len(weight))
        products.product(x, weight, out)
        return out

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        of_rows = of_weight = None
        if ctx.needs_input_grad[0]:
            of_rows = torch.empty_like(x)
            ctx.products.of_rows(grad, weight, of_rows)
        if ctx.needs_input_grad[1]:
            of_weight = ctx.products.of_weight(grad, x)
        return of_rows, of_weight, None
