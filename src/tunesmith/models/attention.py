"""Ragged and forest attention, registered through transformers' AttentionInterface."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface

from tunesmith.models.attention_cuda import cuda_attention
from tunesmith.models.forest import Forest, Segment, dense_mask

RAGGED = "tunesmith_ragged"
DENSE = "tunesmith_dense"
softmax_backward = torch.ops.aten._softmax_backward_data

BLOCK = 256  # query rows multiplied at once: bounds the probabilities held in memory


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


def key_spans(segment: Segment, stop: int) -> list[tuple[int, int]]:
    """Spans of the keys that rows before `stop` may see: all ancestors, then the segment up to `stop`."""
    return [*segment.ancestors, (segment.start, stop)]


def gather(states: Float[Tensor, "Hkv T E"], spans: list[tuple[int, int]]) -> Float[Tensor, "Hkv L E"]:
    if len(spans) == 1:
        return states[:, spans[0][0] : spans[0][1]]
    return torch.cat([states[:, start:end] for start, end in spans], 1)


def fold(states: Float[Tensor, "H T E"], kv_heads: int, start: int, end: int) -> Float[Tensor, "Hkv GT E"]:
    """Rows [start, end) of all query heads that share a key head, stacked, so that one matmul serves them all."""
    return states[:, start:end].reshape(kv_heads, -1, states.shape[-1])


class ForestAttention(torch.autograd.Function):
    """softmax(q k^T * scale + mask) v per segment, in blocks of rows; backward forms the probabilities anew."""

    @staticmethod
    def forward(ctx, query, key, value, forest, scale, window):  # pyright: ignore[reportIncompatibleMethodOverride]
        heads, total, width = query.shape
        kv_heads = key.shape[0]
        out = query.new_empty(total, heads, width)
        for segment, start, stop in blocks(forest):
            spans = key_spans(segment, stop)
            probabilities = block_probabilities(query, key, forest, segment, start, stop, scale, window)
            mixed = torch.bmm(probabilities, gather(value, spans))
            out[start:stop] = mixed.view(heads, stop - start, width).transpose(0, 1)
        ctx.save_for_backward(query, key, value)
        ctx.forest, ctx.scale, ctx.window, ctx.kv_heads = forest, scale, window, kv_heads
        return out

    @staticmethod
    def backward(ctx, grad_out):  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value = ctx.saved_tensors
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        grad_out = grad_out.transpose(0, 1)
        for segment, start, stop in blocks(ctx.forest):
            spans = key_spans(segment, stop)
            probabilities = block_probabilities(query, key, ctx.forest, segment, start, stop, ctx.scale, ctx.window)
            keys, values = gather(key, spans), gather(value, spans)
            grad_rows = fold(grad_out, ctx.kv_heads, start, stop)
            scatter_add(grad_value, torch.bmm(probabilities.transpose(1, 2), grad_rows), spans)
            grad_probabilities = torch.bmm(grad_rows, values.transpose(1, 2))
            grad_scores = softmax_backward(grad_probabilities, probabilities, -1, probabilities.dtype)
            grad_scores *= ctx.scale
            rows = torch.bmm(grad_scores, keys).view(query.shape[0], stop - start, query.shape[2])
            grad_query[:, start:stop] = rows
            query_rows = fold(query, ctx.kv_heads, start, stop)
            scatter_add(grad_key, torch.bmm(grad_scores.transpose(1, 2), query_rows), spans)
        return grad_query, grad_key, grad_value, None, None, None


def blocks(forest: Forest):
    """Every segment cut into runs of at most BLOCK query rows: (segment, start, stop)."""
    for segment in forest.segments:
        for start in range(segment.start, segment.end, BLOCK):
            yield segment, start, min(start + BLOCK, segment.end)


def block_probabilities(
    query: Tensor,
    key: Tensor,
    forest: Forest,
    segment: Segment,
    start: int,
    stop: int,
    scale: float,
    window: int | None,
) -> Float[Tensor, "Hkv GT L"]:
    kv_heads, groups = key.shape[0], query.shape[0] // key.shape[0]
    rows = fold(query, kv_heads, start, stop)
    keys = gather(key, key_spans(segment, stop))
    context = segment.context + start - segment.start
    bias = forest.bias(stop - start, context, window, query.dtype).repeat(groups, 1)
    return torch.baddbmm(bias, rows, keys.transpose(1, 2), alpha=scale).softmax(-1)


def scatter_add(target: Tensor, gradient: Tensor, spans: list[tuple[int, int]]) -> None:
    offset = 0
    for start, end in spans:
        target[:, start:end] += gradient[:, offset : offset + end - start]
        offset += end - start
