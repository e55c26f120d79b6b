"""Ragged and forest attention, registered through transformers' AttentionInterface."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface

from tunesmith.models.attention_cuda import cuda_attention
from tunesmith.models.forest import Forest, Stack, dense_mask

RAGGED = "tunesmith_ragged"
DENSE = "tunesmith_dense"
softmax_backward = torch.ops.aten._softmax_backward_data


def register() -> None:
    """Make both implementations known to transformers; calling it again changes nothing."""
    AttentionInterface.register(RAGGED, ragged_attention)
    AttentionInterface.register(DENSE, dense_attention)


def ragged_attention(
    module: nn.Module,
    query: Float[Tensor, "1 H T E"],
    key: Float[Tensor, "1 Hkv T E"],
    value: Float[Tensor, "1 Hkv T E"],
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    forest: Forest | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[Float[Tensor, "1 T H E"], None]:
    """Attention that multiplies no token with another segment's; `forest` comes from the caller of the model."""
    assert forest is not None, "ragged attention is called without the forest of its batch"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type == "cuda" and softcap is None and dropout == 0.0:
        return cuda_attention(query[0], key[0], value[0], forest, scale, sliding_window)[None], None
    if softcap is None and dropout == 0.0:
        out = ForestAttention.apply(query[0], key[0], value[0], forest, scale, sliding_window)
    else:
        out = plain_attention(query[0], key[0], value[0], forest, scale, sliding_window, softcap, dropout)
    return out[None], None


def dense_attention(
    module: nn.Module,
    query: Float[Tensor, "1 H T E"],
    key: Float[Tensor, "1 Hkv T E"],
    value: Float[Tensor, "1 Hkv T E"],
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    forest: Forest | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[Float[Tensor, "1 T H E"], None]:
    """The reference: one mask over the whole batch, every masked product computed all the same."""
    assert forest is not None, "dense attention is called without the forest of its batch"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query.float() @ key.float().transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    mask = dense_mask(forest, sliding_window).to(query.device)
    probabilities = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    probabilities = nn.functional.dropout(probabilities, dropout).to(query.dtype)
    return (probabilities @ value).transpose(1, 2), None


def plain_attention(
    query: Float[Tensor, "H T E"],
    key: Float[Tensor, "Hkv T E"],
    value: Float[Tensor, "Hkv T E"],
    forest: Forest,
    scale: float,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> Float[Tensor, "T H E"]:
    """Segment by segment through autograd, for scores that are capped or probabilities that are dropped."""
    groups = query.shape[0] // key.shape[0]
    parts = []
    for segment in forest.segments:
        spans = (*segment.ancestors, (segment.start, segment.end))
        keys = torch.cat([key[:, start:end] for start, end in spans], 1).repeat_interleave(groups, 0)
        values = torch.cat([value[:, start:end] for start, end in spans], 1).repeat_interleave(groups, 0)
        scores = query[:, segment.start : segment.end].float() @ keys.float().transpose(-1, -2) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        bias = forest.bias(segment.end - segment.start, segment.context, window, torch.float32).to(scores.device)
        probabilities = nn.functional.dropout((scores + bias).softmax(-1), dropout).to(query.dtype)
        parts.append((probabilities @ values).transpose(0, 1))
    return torch.cat(parts)


def fold(states: Float[Tensor, "H T E"], stack: Stack, kv_heads: int) -> Float[Tensor, "HkvN GR E"]:
    """The stack's rows of all query heads that share a key head, one below the other: one matmul serves them all."""
    width, count = states.shape[-1], len(stack.units)
    rows = states.transpose(0, 1).index_select(0, stack.rows).index_fill_(0, stack.filling, 0)
    groups = states.shape[0] // kv_heads
    return rows.view(count, -1, kv_heads, groups, width).permute(2, 0, 3, 1, 4).reshape(kv_heads * count, -1, width)


def unfold(rows: Float[Tensor, "HkvN GR E"], stack: Stack, kv_heads: int) -> Float[Tensor, "Hkv N G R E"]:
    count = len(stack.units)
    return rows.view(kv_heads, count, -1, len(stack.rows) // count, rows.shape[-1])


def keys_of(states: Float[Tensor, "Hkv T E"], stack: Stack) -> Float[Tensor, "HkvN L E"]:
    kv_heads, _, width = states.shape
    picked = states.transpose(0, 1).index_select(0, stack.keys).view(len(stack.units), -1, kv_heads, width)
    return picked.permute(2, 0, 1, 3).reshape(kv_heads * len(stack.units), -1, width)


def scaled(left: Float[Tensor, "B X Y"], right: Float[Tensor, "B Y Z"], scale: float) -> Float[Tensor, "B X Z"]:
    """left right * scale, rounded once."""
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scale)


def probabilities_of(
    rows: Float[Tensor, "HkvN GR E"], keys: Float[Tensor, "HkvN L E"], stack: Stack, kv_heads: int, scale: float
) -> Float[Tensor, "HkvN GR L"]:
    """softmax(rows keys^T * scale + mask)."""
    scores = scaled(rows, keys.transpose(1, 2), scale)
    unfold(scores, stack, kv_heads)[..., -stack.bias.shape[-1] :] += stack.bias
    return scores.softmax(-1)


def put_rows(target: Float[Tensor, "T *heads E"], rows: Float[Tensor, "N R *heads E"], stack: Stack) -> None:
    """Write each unit's rows to the places of its tokens."""
    for unit, found in zip(stack.units, rows, strict=True):
        target[unit.start : unit.stop] = found[: unit.rows]


def add_keys(target: Float[Tensor, "Hkv T E"], gradient: Float[Tensor, "HkvN L E"], stack: Stack) -> None:
    """Add to the keys' own tokens; keys that several units share gather from all of them."""
    parts = gradient.view(target.shape[0], len(stack.units), -1, target.shape[-1])
    for number, unit in enumerate(stack.units):
        offset = 0
        for start, end in unit.above:
            target[:, start:end] += parts[:, number, offset : offset + end - start]
            offset += end - start
        target[:, unit.start : unit.stop] += parts[:, number, stack.above : stack.above + unit.rows]


def mixed(query: Tensor, key: Tensor, value: Tensor, stack: Stack, scale: float) -> Float[Tensor, "N R H E"]:
    """The values that each row of the stack sees, weighed; torch's own kernel never writes the probabilities down."""
    rows, keys, values = (
        states.transpose(0, 1).index_select(0, tokens).unflatten(0, (len(stack.units), -1)).transpose(1, 2)
        for states, tokens in ((query, stack.rows), (key, stack.keys), (value, stack.keys))
    )
    mask = nn.functional.pad(stack.bias, (keys.shape[2] - stack.bias.shape[-1], 0))
    return nn.functional.scaled_dot_product_attention(
        rows, keys, values, attn_mask=mask, scale=scale, enable_gqa=len(key) < len(query)
    ).transpose(1, 2)


def gradients(
    query: Tensor, key: Tensor, value: Tensor, grad_out: Tensor, stack: Stack, scale: float
) -> tuple[Float[Tensor, "HkvN GR E"], Float[Tensor, "HkvN L E"], Float[Tensor, "HkvN L E"]]:
    """Those of the stack's queries, keys and values; the probabilities are formed anew."""
    rows, keys, grad_rows = fold(query, stack, len(key)), keys_of(key, stack), fold(grad_out, stack, len(key))
    probabilities = probabilities_of(rows, keys, stack, len(key), scale)
    grad_values = torch.bmm(probabilities.transpose(1, 2), grad_rows)
    grad_probabilities = torch.bmm(grad_rows, keys_of(value, stack).transpose(1, 2))
    grad_scores = softmax_backward(grad_probabilities, probabilities, -1, probabilities.dtype)
    return scaled(grad_scores, keys, scale), scaled(grad_scores.transpose(1, 2), rows, scale), grad_values


class ForestAttention(torch.autograd.Function):
    """softmax(q k^T * scale + mask) v, stack by stack."""

    @staticmethod
    def forward(ctx, query, key, value, forest, scale, window):  # pyright: ignore[reportIncompatibleMethodOverride]
        out = torch.empty_like(query.transpose(0, 1), memory_format=torch.contiguous_format)
        for stack in forest.stacks(window, query.dtype):
            put_rows(out, mixed(query, key, value, stack, scale), stack)
        ctx.save_for_backward(query, key, value)
        ctx.forest, ctx.scale, ctx.window = forest, scale, window
        return out

    @staticmethod
    def backward(ctx, grad_out):  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value = ctx.saved_tensors
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        grad_groups = grad_query.transpose(0, 1).unflatten(1, (len(key), -1))
        for stack in ctx.forest.stacks(ctx.window, query.dtype):
            rows, keys, values = gradients(query, key, value, grad_out.transpose(0, 1), stack, ctx.scale)
            put_rows(grad_groups, unfold(rows, stack, len(key)).permute(1, 3, 0, 2, 4), stack)
            add_keys(grad_key, keys, stack)
            add_keys(grad_value, values, stack)
        return grad_query, grad_key, grad_value, None, None, None
