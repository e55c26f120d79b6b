"""Frozen linear layers whose products are formed in 8 bits: faster than bf16, and not exact.

Every row that goes in, and every output of the weights, is divided by its own largest figure (W8A8, dynamic, symmetric:
arXiv:2208.07339 section 2.1, without the outliers). The gradient of the input is formed the same way, from weights that
are quantised once more, by input. Nothing is stored in 8 bits: adapters and merged models go with the exact weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from tunesmith.models.native.kernels import kernels_for, multiplies_blocks
from tunesmith.models.products import Products
from tunesmith.models.scratch import scratch

TILE, DEPTH = 32, 64  # rows and columns, and inputs, that the kernel takes at once
LARGEST = 127.0
LARGEST_FP8 = 448.0  # of float8_e4m3fn


class Matrix8(Protocol):
    """A matrix (O, I) in 8 bits."""

    def product(self, x: Float[Tensor, "T I"], out: Float[Tensor, "T O"]) -> None:
        """out = x W^T."""
        ...


class BothWays(Matrix8, Protocol):
    """Products with a matrix (O, I) in both directions."""

    def product_backward(self, grad: Float[Tensor, "T O"], out: Float[Tensor, "T I"]) -> None:
        """out = grad W."""
        ...


class Int8Matrix:
    """A matrix (O, I) for `x W^T`, scaled by output."""

    def __init__(self, weight: Float[Tensor, "O I"]) -> None:
        outputs, inputs = weight.shape
        whole, scale = quantized(weight.float())
        whole[:, inputs:] = 0  # so that what stands beyond the rows of x counts for nothing
        self.weights = in_tiles(whole) if multiplies_blocks() else whole[:outputs, :inputs].clone()
        self.scale = nn.functional.pad(scale[:, 0], (0, -outputs % TILE))

    def product(self, x: Float[Tensor, "T I"], out: Float[Tensor, "T O"]) -> None:
        whole, scale = quantized(x)
        kernels = kernels_for(x)
        if kernels is not None and multiplies_blocks():
            kernels.products(whole, scale, self.weights, self.scale, out)
            return
        sums = torch.ops.aten._int_mm(whole[: len(x), : x.shape[1]].contiguous(), self.weights.T)
        out.copy_(sums.float().mul_(scale).mul_(self.scale[: out.shape[1]]))


class Fp8Matrix:
    """A matrix (O, I) for `x W^T` with float8_e4m3fn on a GPU; scaled by output."""

    def __init__(self, weight: Float[Tensor, "O I"]) -> None:
        self.values, scale = quantized_fp8(weight.float())
        self.scale = scale.T.contiguous()

    def product(self, x: Float[Tensor, "T I"], out: Float[Tensor, "T O"]) -> None:
        values, scale = quantized_fp8(x)
        torch.ops.aten._scaled_mm.out(values, self.values.T, scale, self.scale, out_dtype=out.dtype, out=out)


class Weights8:
    """Frozen weights (O, I) in 8 bits for both directions: int8 on a CPU, fp8 on a GPU."""

    def __init__(self, weight: Float[Tensor, "O I"], products: Products) -> None:
        make = {"int8": Int8Matrix, "fp8": Fp8Matrix}[products]
        self.forward: Matrix8 = make(weight)
        self.backward: Matrix8 = make(weight.T)

    def product(self, x: Float[Tensor, "T I"], out: Float[Tensor, "T O"]) -> None:
        """out = x W^T."""
        self.forward.product(x, out)

    def product_backward(self, grad: Float[Tensor, "T O"], out: Float[Tensor, "T I"]) -> None:
        """out = grad W."""
        self.backward.product(grad, out)


class Linear8(nn.Module):
    """A frozen linear layer, alone or with others that read the same rows; its outputs are `rows` of their product.

    Used alone it computes the product of all and takes its own: right, and dear where there are several.
    """

    def __init__(self, layer: nn.Linear, weights: Weights8, rows: slice, joined: int) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        self.weights, self.rows, self.joined = weights, rows, joined

    def forward(self, x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        out = Product8.apply(x.reshape(-1, self.in_features), self)
        assert isinstance(out, Tensor)
        return (out if self.bias is None else out + self.bias).view(*x.shape[:-1], -1)


class Product8(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.layer = layer
        out = x.new_empty(len(x), layer.joined)
        layer.weights.product(x, out)
        return out if layer.joined == layer.out_features else out[:, layer.rows].contiguous()  # never a view: PEFT adds

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        layer = ctx.layer
        whole = grad.new_zeros(len(grad), layer.joined)
        whole[:, layer.rows] = grad
        out = grad.new_empty(len(grad), layer.in_features)
        layer.weights.product_backward(whole, out)
        return out, None


def join(layers: Sequence[nn.Linear], products: Products) -> list[Linear8]:
    """Replacements for layers that read the same rows, with one product for all of them."""
    weights = Weights8(torch.cat([layer.weight.detach() for layer in layers]), products)
    joined = sum(layer.out_features for layer in layers)
    ends = itertools.accumulate(layer.out_features for layer in layers)
    return [
        Linear8(layer, weights, slice(end - layer.out_features, end), joined)
        for layer, end in zip(layers, ends, strict=True)
    ]


def quantized(x: Float[Tensor, "T I"]) -> tuple[Int8[Tensor, "S K"], Float[Tensor, "T 1"]]:
    """Whole numbers up to 127 and the fp32 scale of every row, until the next call; beyond x stands anything."""
    shape = [-(-len(x) // TILE) * TILE, -(-x.shape[1] // DEPTH) * DEPTH]
    whole, scale = scratch("whole", shape, x, torch.int8), scratch("row scale", (len(x), 1), x, torch.float32)
    if (kernels := kernels_for(x)) is not None:
        kernels.quantize(x.contiguous(), whole, scale)
        return whole, scale
    top = x.abs().amax(1, keepdim=True).float()
    torch.div(top, LARGEST, out=scale)
    times = torch.where(top > 0, LARGEST / top, 0.0)
    whole[: len(x), : x.shape[1]] = (x * times).round_()
    return whole, scale


def in_tiles(whole: Int8[Tensor, "O K"]) -> Int8[Tensor, "N D 16 16 4"]:
    """4 inputs of 16 outputs side by side, 64 inputs in each tile: the order in which `products` reads weights."""
    return whole.view(len(whole) // 16, 16, -1, 16, 4).permute(0, 2, 3, 1, 4).contiguous()


def quantized_fp8(x: Float[Tensor, "T I"]) -> tuple[Tensor, Float[Tensor, "T 1"]]:
    scale = x.abs().amax(1, keepdim=True).float().div_(LARGEST_FP8).clamp_(min=torch.finfo(torch.float32).tiny)
    return (x / scale).to(torch.float8_e4m3fn), scale
