"""Attention inside the layer: written out on a CPU; elsewhere a small graph of its own around torch's kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tunesmith.models.attention_cuda import cuda_attention
from tunesmith.models.forest import Forest
from tunesmith.models.forest_attention import Heads, Mixed, attend, attend_backward
from tunesmith.models.layer.weights import Shape
from tunesmith.track.clock import part


@dataclass(frozen=True, slots=True)
class Attended:
    """What the gradient of attention needs; `graph` is the mixed values with their graph, where torch has made one."""

    heads: Heads
    sums: Float[Tensor, "K TG"] | None = None
    graph: Float[Tensor, "T H E"] | None = None


@part("attention")
def attended(
    heads: Heads, forest: Forest, shape: Shape, out: Float[Tensor, "T Q"]
) -> tuple[Attended, Float[Tensor, "T Q"]]:
    """What the gradient needs, and the mixed values of every row, in `out` where they are formed here."""
    if not written_out(heads.query):
        return with_graph(heads, forest, shape)
    mixed = attend(heads, forest, shape.scale, shape.window, by_head(out, shape))
    return Attended(heads, mixed.sums), out


def by_head(rows: Float[Tensor, "T Q"], shape: Shape) -> Float[Tensor, "K T W"]:
    return rows.unflatten(1, (shape.key_heads, -1)).transpose(0, 1)


def written_out(states: Tensor) -> bool:
    """Whether attention is our own here; torch has no ragged attention with a gradient on a CPU."""
    return states.device.type == "cpu"


@part("attention")
def attended_backward(
    grad: Float[Tensor, "T Q"], mixed: Float[Tensor, "T Q"], attended: Attended, forest: Forest, shape: Shape
) -> Heads:
    """The gradients of queries, keys and values. `mixed` may be zero where `grad` is."""
    heads = attended.heads
    if attended.graph is not None:
        leaves = heads.query, heads.key, heads.value
        return Heads(*torch.autograd.grad(attended.graph, leaves, grad.view_as(attended.graph)))
    mixing = Mixed(by_head(mixed, shape), attended.sums)
    return attend_backward(by_head(grad, shape), mixing, heads, forest, shape.scale, shape.window)


def with_graph(heads: Heads, forest: Forest, shape: Shape) -> tuple[Attended, Float[Tensor, "T Q"]]:
    """With queries, keys and values as leaves of a graph that ends in the mixed values."""
    query, key, value = (states.detach().requires_grad_() for states in (heads.query, heads.key, heads.value))
    with torch.enable_grad():
        apart = query.unflatten(2, (-1, shape.width)).transpose(1, 2).flatten(0, 1)
        graph = cuda_attention(apart, key, value, forest, shape.scale, shape.window)
    return Attended(Heads(query, key, value), graph=graph), graph.detach().flatten(1)
