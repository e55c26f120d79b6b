"""How decoding begins: prompts side by side, and in front of them a learned prompt, read into a cache once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from tunesmith.models.forward import base_model
from tunesmith.models.prompts import positions_taken, prompt_keys, prompt_rows
from tunesmith.rollout.decoding import RoomyLayer, cache_for


def in_groups(model: nn.Module, order: Sequence[int], lengths: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Places in groups that are decoded at once; `lengths` are those of their prompts.

    A window is counted in places of the cache. Padding stands before learned embeddings, but behind learned keys and
    values: layers with a window take only prompts of one length then.
    """
    alike = takes_one_length(model)
    start = 0
    while start < len(order):
        group = order[start : start + size]
        if alike:
            group = list(takewhile(lambda place: lengths[place] == lengths[group[0]], group))  # noqa: B023
        yield group
        start += len(group)


def takes_one_length(model: nn.Module) -> bool:
    """Whether prompts that are decoded together must be equally long."""
    windows = any(not isinstance(layer, RoomyLayer) for layer in cache_for(base_model(model), 1).layers)
    return windows and prompt_keys(model) is not None


@dataclass(frozen=True, slots=True)
class Begun:
    """The cache behind the prompts and what comes next; `mask` has room for the answers (None: nothing is padded)."""

    cache: DynamicCache
    logits: Float[Tensor, "B V"]
    mask: Int[Tensor, "B PR"] | None
    positions: Int[Tensor, "B P"]
    width: int  # places of the cache that are taken


def begin(model: nn.Module, prompts: Sequence[Sequence[int]], room: int) -> Begun:
    """Read the prompts; learned embeddings are the first tokens of each, learned keys and values those of the cache."""
    base, keys = base_model(model), prompt_keys(model)
    count = positions_taken(model)
    inside = count if keys is None else 0  # learned tokens that are rows
    tokens, mask, positions = left_pad([[0] * inside + list(prompt) for prompt in prompts], room, base.device)
    cache = cache_for(base, tokens.shape[1] + room + (count - inside))
    embeddings = with_rows(model, base, tokens, prompts) if inside else None
    width = tokens.shape[1]
    if keys is not None:
        fill(cache, keys, len(prompts), base.dtype)
        positions, width = positions + count, width + count
        mask = None if mask is None else nn.functional.pad(mask, (count, 0), value=1)
    seen = None if mask is None else mask[:, :width]
    return Begun(cache, forward(base, cache, tokens, positions, seen, embeddings), mask, positions, width)


def with_rows(
    model: nn.Module, base: PreTrainedModel, tokens: Int[Tensor, "B P"], prompts: Sequence[Sequence[int]]
) -> Float[Tensor, "B P D"]:
    """The embedded tokens, those before each prompt learned."""
    embedded = base.get_input_embeddings()(tokens)
    rows = prompt_rows(model, embedded[0])
    for row, prompt in enumerate(prompts):
        end = tokens.shape[1] - len(prompt)
        embedded[row, end - len(rows) : end] = rows
    return embedded


def fill(cache: DynamicCache, keys: tuple[Tensor, Tensor], batch: int, dtype: torch.dtype) -> None:
    for layer, (key, value) in enumerate(zip(*keys, strict=True)):
        cache.update(key.to(dtype).expand(batch, -1, -1, -1), value.to(dtype).expand(batch, -1, -1, -1), layer)


def forward(
    base: PreTrainedModel,
    cache: DynamicCache,
    tokens: Tensor,
    positions: Tensor,
    mask: Tensor | None,
    embeddings: Tensor | None = None,
) -> Float[Tensor, "B V"]:
    last = torch.tensor([tokens.shape[1] - 1], device=tokens.device)  # a slice would make the head copy itself per row
    out = base(
        input_ids=tokens if embeddings is None else None,
        inputs_embeds=embeddings,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=last,
    )
    return out.logits[:, -1]


def left_pad(
    prompts: Sequence[Sequence[int]], room: int, device: torch.device
) -> tuple[Int[Tensor, "B P"], Int[Tensor, "B PR"] | None, Int[Tensor, "B P"]]:
    """Tokens, mask over prompt and answer (None when nothing is padded), positions; padding has no id of its own."""
    width = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.ones(len(prompts), width + room, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, : width - len(prompt)] = 0
    positions = (mask[:, :width].cumsum(1) - 1).clamp_(min=0)
    padded = any(len(prompt) < width for prompt in prompts)
    return tokens.to(device), mask.to(device) if padded else None, positions.to(device)
