"""Attention over a forest on a CPU, forward and backward.

In bf16 compiled kernels do it where they multiply blocks. Else it is written out here, a batched matmul for many
segments.

Heads that share a key stand side by side, so that they are rows of one matmul. Shapes: K key heads, G query heads each,
E their width, W = G E; N units of R rows and L keys in a stack (see `forest.Stack`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tunesmith.models.forest import Forest, Stack
from tunesmith.models.native.attention import TiledAttention, serves
from tunesmith.models.native.kernels import kernels_for
from tunesmith.models.scratch import scratch
from tunesmith.track.clock import part


@dataclass(frozen=True, slots=True)
class Heads:
    """Queries, keys and values by key head."""

    query: Float[Tensor, "K T W"]
    key: Float[Tensor, "K T E"]
    value: Float[Tensor, "K T E"]

    def tiled(self, forest: Forest, scale: float, window: int | None) -> TiledAttention:
        return TiledAttention(self.query, self.key, self.value, forest.paths(), scale, window)


@dataclass(frozen=True, slots=True)
class Mixed:
    """softmax(query key^T * scale + mask) value, and the sum behind each row's softmax where the gradient needs it."""

    values: Float[Tensor, "K T W"]
    sums: Float[Tensor, "K TG"] | None = None


def attend(
    heads: Heads, forest: Forest, scale: float, window: int | None, out: Float[Tensor, "K T W"] | None = None
) -> Mixed:
    """Every row's values, mixed by how well the keys that it sees match its query; in `out` where it is given."""
    query = heads.query
    if out is None:  # side by side as the next product wants them
        out = query.new_empty(query.shape[1], len(query), query.shape[2]).transpose(0, 1)
    if serves(query):
        return Mixed(out, heads.tiled(forest, scale, window).forward(out))
    out.copy_(attend_stacked(query, heads.key, heads.value, forest, scale, window))
    return Mixed(out)


def attend_backward(
    grad: Float[Tensor, "K T W"], mixed: Mixed, heads: Heads, forest: Forest, scale: float, window: int | None
) -> Heads:
    """Gradients of query, key and value; the probabilities are formed anew."""
    if mixed.sums is not None:
        return Heads(*heads.tiled(forest, scale, window).backward(grad, mixed.values, mixed.sums))
    return Heads(*attend_stacked_backward(grad, heads.query, heads.key, heads.value, forest, scale, window))


def attend_stacked(
    query: Float[Tensor, "K T W"],
    key: Float[Tensor, "K T E"],
    value: Float[Tensor, "K T E"],
    forest: Forest,
    scale: float,
    window: int | None,
) -> Float[Tensor, "K T W"]:
    heads, total, width = query.shape
    out = query.new_empty(heads, total + 1, width)  # one place more, for what fills up
    for stack in forest.stacks(window, query.dtype):
        rows, keys = rows_of(query, stack, key.shape[-1]), keys_of(key, stack)
        mixed = torch.bmm(probabilities_of(rows, keys, stack, scale), keys_of(value, stack))
        out.index_copy_(1, stack.row_places, mixed.view(heads, -1, width))
    return out[:, :total]


def attend_stacked_backward(
    grad: Float[Tensor, "K T W"],
    query: Float[Tensor, "K T W"],
    key: Float[Tensor, "K T E"],
    value: Float[Tensor, "K T E"],
    forest: Forest,
    scale: float,
    window: int | None,
) -> tuple[Float[Tensor, "K T W"], Float[Tensor, "K T E"], Float[Tensor, "K T E"]]:
    heads, total, width = query.shape
    each = key.shape[-1]
    grad_query = query.new_empty(heads, total + 1, width)
    grad_key, grad_value = (key.new_zeros(heads, total + 1, each) for _ in range(2))
    for stack in forest.stacks(window, query.dtype):
        rows, keys = rows_of(query, stack, each), keys_of(key, stack)
        grad_rows = rows_of(grad, stack, each)
        grad_rows.view(heads, -1, width).index_fill_(1, stack.filling, 0)
        chances = probabilities_of(rows, keys, stack, scale)
        values = torch.bmm(chances.transpose(1, 2), grad_rows)
        slopes = torch.bmm(grad_rows, keys_of(value, stack).transpose(1, 2), out=scratch("slopes", chances.shape, key))
        slopes = softmax_backward(slopes, chances)
        grad_query.index_copy_(1, stack.row_places, scaled(slopes, keys, scale).view(heads, -1, width))
        grad_key.index_add_(1, stack.key_places, scaled(slopes.transpose(1, 2), rows, scale).view(heads, -1, each))
        grad_value.index_add_(1, stack.key_places, values.view(heads, -1, each))
    return grad_query[:, :total], grad_key[:, :total], grad_value[:, :total]


def rows_of(states: Float[Tensor, "K T W"], stack: Stack, each: int) -> Float[Tensor, "KN RG E"]:
    return states.index_select(1, stack.rows).view(len(states) * stack.count, -1, each)


def keys_of(states: Float[Tensor, "K T E"], stack: Stack) -> Float[Tensor, "KN L E"]:
    return states.index_select(1, stack.keys).view(len(states) * stack.count, -1, states.shape[-1])


def probabilities_of(
    rows: Float[Tensor, "KN RG E"], keys: Float[Tensor, "KN L E"], stack: Stack, scale: float
) -> Float[Tensor, "KN RG L"]:
    """softmax(rows keys^T * scale + mask)."""
    scores = scaled(rows, keys.transpose(1, 2), scale, scratch("scores", (*rows.shape[:2], keys.shape[1]), rows))
    if (kernels := kernels_for(scores)) is not None:
        kernels.softmax(scores, stack.bias)
        return scores
    count, height, hidden = stack.bias.shape
    scores.view(-1, count, height, rows.shape[1] // height, keys.shape[1])[..., -hidden:] += stack.bias[:, :, None]
    return torch.softmax(scores, -1, out=scratch("chances", scores.shape, scores))


def softmax_backward(slopes: Float[Tensor, "KN RG L"], chances: Float[Tensor, "KN RG L"]) -> Float[Tensor, "KN RG L"]:
    """The gradient in front of the softmax; `slopes`, the gradient behind it, is used up."""
    if (kernels := kernels_for(slopes)) is not None:
        kernels.softmax_backward(slopes, chances)
        return slopes
    return torch.ops.aten._softmax_backward_data(slopes, chances, -1, chances.dtype)


def scaled(
    left: Float[Tensor, "B X Y"], right: Float[Tensor, "B Y Z"], scale: float, out: Tensor | None = None
) -> Float[Tensor, "B X Z"]:
    """left right * scale, rounded once."""
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scale, out=out)


class ForestAttention(torch.autograd.Function):
    """`attend` with its gradient."""

    @staticmethod
    def forward(ctx, query, key, value, forest, scale, window):  # pyright: ignore[reportIncompatibleMethodOverride]
        mixed = attend(Heads(query, key, value), forest, scale, window)
        ctx.save_for_backward(query, key, value, None if mixed.sums is None else mixed.values, mixed.sums)
        ctx.forest, ctx.scale, ctx.window = forest, scale, window
        return mixed.values

    @staticmethod
    @part("attention")
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, mixed, sums = ctx.saved_tensors
        grads = attend_backward(grad, Mixed(mixed, sums), Heads(query, key, value), ctx.forest, ctx.scale, ctx.window)
        return grads.query, grads.key, grads.value, None, None, None
