"""Projected rows become queries, keys and values by head, normed and rotated; and their gradients back.

Shapes: T rows; H query heads, K key heads of width E; G = H / K and W = G E, the queries that share a key side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tunesmith.models.layer.parts import BETWEEN, norm, norm_backward, norm_weight_gradient, rotate, rotate_backward
from tunesmith.models.layer.projection import Gradients
from tunesmith.models.layer.weights import Norm, Shape
from tunesmith.models.scratch import Loan, lend, scratch


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosine and sine of every row's position."""

    cos: Float[Tensor, "T E"]
    sin: Float[Tensor, "T E"]


@BETWEEN
def heads_of(
    rows: Float[Tensor, "T O"], shape: Shape, own_norm: Norm | None, rotation: Rotation, loans: list[Loan]
) -> Float[Tensor, "K T X"]:
    """The rows by key head, in memory of their own; X is W for queries, E for keys."""
    if own_norm is not None:
        normed = scratch("heads", rows.shape, rows)
        norm(normed_view(rows, own_norm), own_norm.weight, own_norm.eps, out=normed_view(normed, own_norm))
        rows = normed
    width = rows.shape[1] // shape.key_heads
    out = lend(f"heads of {width}", (shape.key_heads, len(rows), width), rows, loans)
    apart, target = by_key_head(rows, shape), out.unflatten(2, (-1, shape.width))
    if shape.rotary:
        rotate(apart, rotation.cos, rotation.sin, out=target)
    else:
        target.copy_(apart)
    return out


@BETWEEN
def heads_backward(
    grad: Float[Tensor, "K T X"],
    rows: Float[Tensor, "T O"] | None,
    shape: Shape,
    own_norm: Norm | None,
    rotation: Rotation,
    out: Float[Tensor, "T O"],
) -> Gradients:
    """out = the gradient of the rows; `rows` is what `heads_of` was given, and needed with a norm only."""
    grad, target = grad.unflatten(2, (-1, shape.width)), by_key_head(out, shape)
    if shape.rotary:
        rotate_backward(grad, rotation.cos, rotation.sin, out=target)
    else:
        target.copy_(grad)
    if own_norm is None:
        return {}
    assert rows is not None
    states, grads = normed_view(rows, own_norm), normed_view(out, own_norm)
    factor = norm(states, own_norm.weight, own_norm.eps, out=scratch("heads", states.shape, states))
    trained = own_norm.weight.requires_grad
    of_weight = {own_norm.weight: norm_weight_gradient(grads, states, factor)} if trained else {}
    grads.copy_(norm_backward(grads, states, own_norm.weight, factor))
    return of_weight


def by_key_head(rows: Float[Tensor, "T O"], shape: Shape) -> Float[Tensor, "K T G E"]:
    """The same memory, seen by key head."""
    return rows.unflatten(1, (shape.key_heads, -1, shape.width)).transpose(0, 1)


def normed_view(rows: Float[Tensor, "T O"], own_norm: Norm) -> Float[Tensor, "T N D"]:
    """The rows in pieces as wide as the norm."""
    return rows.unflatten(1, (-1, len(own_norm.weight)))
