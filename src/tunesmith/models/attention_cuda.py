"""Forest attention on a GPU: varlen kernels for packed sequences, FlexAttention when segments have parents."""

from __future__ import annotations

import inspect

import torch
from jaxtyping import Float
from torch import Tensor

from tunesmith.models.forest import Forest, dense_mask


def cuda_attention(
    query: Float[Tensor, "H T E"],
    key: Float[Tensor, "Hkv T E"],
    value: Float[Tensor, "Hkv T E"],
    forest: Forest,
    scale: float,
    window: int | None,
) -> Float[Tensor, "T H E"]:
    if forest.is_flat and query.dtype in (torch.bfloat16, torch.float16):
        return varlen(query, key, value, forest, scale, window)
    return flex(query, key, value, forest, scale, window)


def varlen(query: Tensor, key: Tensor, value: Tensor, forest: Forest, scale: float, window: int | None) -> Tensor:
    """FlashAttention over the batch's own boundaries (torch.nn.attention.varlen, torch >= 2.11)."""
    from torch.nn.attention.varlen import varlen_attn

    if "window_size" not in inspect.signature(varlen_attn).parameters:
        return flex(query, key, value, forest, scale, window)
    ends = [segment.end for segment in forest.segments]
    bounds = torch.tensor([0, *ends], dtype=torch.int32, device=query.device)
    longest = max(segment.end - segment.start for segment in forest.segments)
    groups = query.shape[0] // key.shape[0]
    rows, keys, values = (
        states.transpose(0, 1).contiguous()
        for states in (query, key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0))
    )
    left = -1 if window is None else window - 1
    out = varlen_attn(rows, keys, values, bounds, bounds, longest, longest, scale=scale, window_size=(left, 0))
    assert isinstance(out, Tensor)
    return out


def flex(query: Tensor, key: Tensor, value: Tensor, forest: Forest, scale: float, window: int | None) -> Tensor:
    """FlexAttention with the forest as its block mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    total = query.shape[1]
    allowed = dense_mask(forest, window).to(query.device)
    mask = create_block_mask(
        lambda batch, head, row, column: allowed[row, column], None, None, total, total, device=query.device
    )
    compiled = torch.compile(flex_attention, dynamic=True)
    out = compiled(query[None], key[None], value[None], block_mask=mask, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1)
