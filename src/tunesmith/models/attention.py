"""Ragged and forest attention, registered through transformers' AttentionInterface."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface

from tunesmith.models.attention_cuda import cuda_attention
from tunesmith.models.forest import Forest, dense_mask
from tunesmith.models.forest_attention import ForestAttention
from tunesmith.track.clock import part

RAGGED = "tunesmith_ragged"
DENSE = "tunesmith_dense"


def register() -> None:
    """Make both implementations known to transformers; calling it again changes nothing."""
    AttentionInterface.register(RAGGED, ragged_attention)
    AttentionInterface.register(DENSE, dense_attention)


@part("attention")
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
    query, key, value, forest, count = with_learned(module, query, key, value, forest)
    if query.device.type == "cuda" and softcap is None and dropout == 0.0:
        return cuda_attention(query[0], key[0], value[0], forest, scale, sliding_window)[None, count:], None
    if softcap is None and dropout == 0.0:
        out = by_heads(query[0], key[0], value[0], forest, scale, sliding_window)
    else:
        out = plain_attention(query[0], key[0], value[0], forest, scale, sliding_window, softcap, dropout)
    return out[None, count:], None


def with_learned(
    module: nn.Module,
    query: Float[Tensor, "1 H T E"],
    key: Float[Tensor, "1 Hkv T E"],
    value: Float[Tensor, "1 Hkv T E"],
    forest: Forest,
) -> tuple[Tensor, Tensor, Tensor, Forest, int]:
    """The same behind the learned keys and values of the layer, and how many there are; their queries are zero."""
    learned = forest.learned
    if learned is None:
        return query, key, value, forest, 0
    count = learned.keys.shape[2]
    keys, values = learned.before(int(module.layer_idx), key[0], value[0])  # pyright: ignore[reportArgumentType]
    return nn.functional.pad(query, (0, 0, count, 0)), keys[None], values[None], learned.forest, count


def by_heads(
    query: Float[Tensor, "H T E"],
    key: Float[Tensor, "Hkv T E"],
    value: Float[Tensor, "Hkv T E"],
    forest: Forest,
    scale: float,
    window: int | None,
) -> Float[Tensor, "T H E"]:
    """ForestAttention for heads apart, which it wants side by side where they share a key."""
    kv_heads, width = len(key), query.shape[-1]
    grouped = query.unflatten(0, (kv_heads, -1)).transpose(1, 2).flatten(2)
    out = ForestAttention.apply(grouped, key, value, forest, scale, window)
    return out.transpose(0, 1).unflatten(2, (-1, width)).flatten(1, 2)


@part("attention")
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
    query, key, value, forest, count = with_learned(module, query, key, value, forest)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query.float() @ key.float().transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    mask = dense_mask(forest, sliding_window).to(query.device)
    probabilities = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    probabilities = nn.functional.dropout(probabilities, dropout).to(query.dtype)
    return (probabilities @ value).transpose(1, 2)[:, count:], None


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
