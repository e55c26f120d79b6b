"""The layers of a model as decoding multiplies them: every projection one product, its adapter inside."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tunesmith.models.eight_bit import Matrix8
from tunesmith.models.layer.projection import Part, Projection
from tunesmith.models.layer.weights import Weights
from tunesmith.models.native.decode import MANY, PackedMatrix, PackedMatrix8, serves

Held = Literal["shared", "packed", "int8"]
"""What products read: the model's own weights, a copy in the order in which it is read, or one in 8 bits.

Packed ones give the same up to rounding and are faster; 8 bits are faster still and not exact.
"""


class Whole:
    """A projection with its adapter and bias, worked out once: out = x W^T + bias + s (x A^T) B^T."""

    def __init__(self, projection: Projection, held: Held, like: Tensor) -> None:
        weight = projection.weight(like).to(like.dtype)
        self.matrix: Matrix8 = (PackedMatrix8 if held == "int8" else PackedMatrix)(weight)
        self.factors = projection.factors(like.dtype)
        biases = [weight.new_zeros(part.width) if part.bias is None else part.bias for part in projection.parts]
        self.bias = torch.cat(biases) if any(part.bias is not None for part in projection.parts) else None
        self.projection = projection

    def product(self, x: Float[Tensor, "T I"], out: Float[Tensor, "T O"]) -> None:
        if len(x) > MANY:
            self.projection.apply(x, out)
            return
        self.matrix.product(x, out)
        if self.bias is not None:
            out += self.bias
        if self.factors is not None:
            out.addmm_(x @ self.factors.a.T, self.factors.b.T)

    def product_backward(self, grad: Tensor, out: Tensor) -> None:
        raise AssertionError("decoding has no gradient")


def laid_out(weights: Weights, held: Held, like: Tensor) -> Weights:
    """The layer's weights with products of that kind; those in few or 8 bits already stay as they are."""
    if held == "shared" or not serves(like.dtype):
        return weights
    names = ("qkv", "out", "gate_up", "down")
    made = {name: whole(each, held, like) for name, each in zip(names, projections_of(weights), strict=True)}
    return replace(weights, **made)


def projections_of(weights: Weights) -> tuple[Projection, Projection, Projection, Projection]:
    return weights.qkv, weights.out, weights.gate_up, weights.down


def whole(projection: Projection, held: Held, like: Tensor) -> Projection:
    if any(part.weight is None for part in projection.parts):
        return projection
    return replace(projection, parts=(Part(projection.width, None, None, None, Whole(projection, held, like)),))


class Head:
    """The projection to the vocabulary, packed where it is a plain matrix."""

    def __init__(self, module: nn.Module, held: Held) -> None:
        self.module = module
        weight = module.weight if type(module) is nn.Linear and module.bias is None else None
        is_packed = held != "shared" and weight is not None and serves(weight.dtype)
        self.matrix = None
        if is_packed and weight is not None:
            self.matrix = (PackedMatrix8 if held == "int8" else PackedMatrix)(weight)

    def __call__(self, states: Float[Tensor, "B D"]) -> Float[Tensor, "B V"]:
        if self.matrix is None or len(states) > MANY:
            return self.module(states)
        out = states.new_empty(len(states), self.matrix.outputs)
        self.matrix.product(states.contiguous(), out)
        return out
