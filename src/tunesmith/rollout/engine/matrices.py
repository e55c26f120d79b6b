"""The layers of a model as decoding multiplies them: every projection one product, its adapter inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tunesmith.models.layer.projection import Part, Projection
from tunesmith.models.layer.weights import Norm, Shape, Weights
from tunesmith.models.native.decode import MANY, PackedMatrix, PackedMatrix8, serves
from tunesmith.models.native.step import Layer, Layers, Product, RowNorm, Sizes
from tunesmith.rollout.config import Held

Packed = PackedMatrix | PackedMatrix8


class Packs:
    """Copies of weights in that order or in 8 bits: one of each matrix, however many engines read it."""

    def __init__(self, held: Held) -> None:
        self.held = held
        self.made: dict[tuple[int, ...], tuple[Sequence[Tensor], Packed]] = {}

    def of(self, weights: Sequence[Tensor], whole: Callable[[], Tensor]) -> Packed:
        """That of these weights side by side; they are kept, so that none is taken for another."""
        key = tuple(map(id, weights))
        if key not in self.made:
            self.made[key] = weights, (PackedMatrix8 if self.held == "int8" else PackedMatrix)(whole())
        return self.made[key][1]


class Whole:
    """A projection with its adapter and bias, worked out once: out = x W^T + bias + s (x A^T) B^T."""

    def __init__(self, projection: Projection, packs: Packs, like: Tensor) -> None:
        weights = [part.weight for part in projection.parts if part.weight is not None]
        self.matrix = packs.of(weights, lambda: projection.weight(like).to(like.dtype))
        self.factors = projection.factors(like.dtype)
        biases = [like.new_zeros(part.width) if part.bias is None else part.bias for part in projection.parts]
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

    def for_kernel(self) -> Product:
        if self.factors is None:
            return Product(self.matrix, self.bias, None, None)
        return Product(self.matrix, self.bias, PackedMatrix(self.factors.a), PackedMatrix(self.factors.b))


def laid_out(weights: Weights, packs: Packs, like: Tensor) -> Weights:
    """The layer's weights with products of that kind; those in few or 8 bits already stay as they are."""
    if packs.held == "shared" or not serves(like.dtype):
        return weights
    names = ("qkv", "out", "gate_up", "down")
    made = {name: whole(each, packs, like) for name, each in zip(names, projections_of(weights), strict=True)}
    return replace(weights, **made)


def projections_of(weights: Weights) -> tuple[Projection, Projection, Projection, Projection]:
    return weights.qkv, weights.out, weights.gate_up, weights.down


def whole(projection: Projection, packs: Packs, like: Tensor) -> Projection:
    if any(part.weight is None for part in projection.parts):
        return projection
    return replace(projection, parts=(Part(projection.width, None, None, None, Whole(projection, packs, like)),))


def stacked(weights: Sequence[Weights], shapes: Sequence[Shape]) -> Layers | None:
    """All layers for one call of the kernels; None where a projection is not held whole, or layers differ in size."""
    sizes = {
        Sizes(each.out.width, own.heads, own.key_heads, own.width) for each, own in zip(weights, shapes, strict=True)
    }
    layers = [layer_of(each, own) for each, own in zip(weights, shapes, strict=True)]
    known = [layer for layer in layers if layer is not None]
    return Layers(known, sizes.pop()) if len(sizes) == 1 and len(known) == len(layers) else None


def layer_of(weights: Weights, shape: Shape) -> Layer | None:
    held = [each.parts[0].eight for each in projections_of(weights)]
    qkv, out, gate_up, down = (each.for_kernel() if isinstance(each, Whole) else None for each in held)
    if qkv is None or out is None or gate_up is None or down is None:
        return None
    norms = weights.norms
    each = norms.before_attention, norms.after_attention, norms.before_mlp, norms.after_mlp, norms.query, norms.key
    return Layer((qkv, out, gate_up, down), tuple(map(row_norm, each)), shape.window, shape.rotary, shape.scale)


def row_norm(norm: Norm | None) -> RowNorm | None:
    return None if norm is None else RowNorm(norm.weight.detach().float().contiguous(), norm.eps)


class Head:
    """The projection to the vocabulary, packed where it is a plain matrix."""

    def __init__(self, module: nn.Module, packs: Packs) -> None:
        self.module = module
        weight = module.weight if type(module) is nn.Linear and module.bias is None else None
        self.matrix = None
        if packs.held != "shared" and weight is not None and serves(weight.dtype):
            self.matrix = packs.of([weight], lambda: weight)

    def __call__(self, states: Float[Tensor, "B D"]) -> Float[Tensor, "B V"]:
        if self.matrix is None:
            return self.module(states)
        out = states.new_empty(len(states), self.matrix.outputs)
        for rows, place in zip(states.contiguous().split(MANY), out.split(MANY), strict=True):
            self.matrix.product(rows, place)
        return out
