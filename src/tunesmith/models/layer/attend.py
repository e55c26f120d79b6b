"""Attention inside the layer: written out on a CPU; elsewhere a small graph of its own around torch's kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tunesmith.models.attention_cuda import cuda_attention
from tunesmith.models.forest import Forest
from tunesmith.models.forest_attention import attend, attend_backward
from tunesmith.models.layer.weights import Shape
from tunesmith.track.clock import part


@dataclass(frozen=True, slots=True)
class Attended:
    """Queries, keys and values by key head; `graph` is the mixed values with their graph, where torch has made one."""

    query: Float[Tensor, "K T W"]
    key: Float[Tensor, "K T E"]
    value: Float[Tensor, "K T E"]
    graph: Float[Tensor, "T H E"] | None = None


@part("attention")
def attended(heads: Attended, forest: Forest, shape: Shape) -> tuple[Attended, Float[Tensor, "T Q"]]:
    """The mixed values of every row, and what its gradient needs."""
    if not written_out(heads.query):
        heads = with_graph(heads, forest, shape)
        assert heads.graph is not None
        return heads, heads.graph.detach().flatten(1)
    mixed = attend(heads.query, heads.key, heads.value, forest, shape.scale, shape.window)
    return heads, mixed.transpose(0, 1).reshape(-1, shape.query_width)


def written_out(states: Tensor) -> bool:
    """Whether attention is our own here; torch has no ragged attention with a gradient on a CPU."""
    return states.device.type == "cpu"


@part("attention")
def attended_backward(
    grad: Float[Tensor, "T Q"], heads: Attended, forest: Forest, shape: Shape
) -> tuple[Float[Tensor, "K T W"], Float[Tensor, "K T E"], Float[Tensor, "K T E"]]:
    if heads.graph is not None:
        query, key, value = torch.autograd.grad(
            heads.graph, (heads.query, heads.key, heads.value), grad.view_as(heads.graph)
        )
        return query, key, value
    by_head = grad.unflatten(1, (shape.key_heads, -1)).transpose(0, 1)
    return attend_backward(by_head, heads.query, heads.key, heads.value, forest, shape.scale, shape.window)


def with_graph(heads: Attended, forest: Forest, shape: Shape) -> Attended:
    """The same queries, keys and values as leaves of a graph that ends in the mixed values."""
    query, key, value = (states.detach().requires_grad_() for states in (heads.query, heads.key, heads.value))
    with torch.enable_grad():
        apart = query.unflatten(2, (-1, shape.width)).transpose(1, 2).flatten(0, 1)
        graph = cuda_attention(apart, key, value, forest, shape.scale, shape.window)
    return replace(heads, query=query, key=key, value=value, graph=graph)
