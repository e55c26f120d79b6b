"""A learned prompt as a forward pass reads it: a segment that every tree of a batch hangs from, or keys and values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from peft import PeftModel, PrefixTuningConfig
from torch import Tensor, nn

from tunesmith.models.forest import Forest, Learned
from tunesmith.types import Batch

ENCODER = "prompt_encoder"


def has_prompt(model: nn.Module) -> bool:
    """Whether a learned prompt stands before every text just now; it may be switched off."""
    return isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning and not model._adapters_disabled


def has_prefix(model: nn.Module) -> bool:
    """Whether keys and values are learned, and no embeddings."""
    return isinstance(model, PeftModel) and isinstance(model.active_peft_config, PrefixTuningConfig)


def positions_taken(model: nn.Module) -> int:
    """Places of the context before the first token of a text."""
    return len(embedding_of(model)) if has_prompt(model) else 0


def encoder_of(model: nn.Module) -> nn.Module:
    """PEFT's module that forms the prompt."""
    assert isinstance(model, PeftModel)
    return model.get_submodule(f"{ENCODER}.{model.active_adapter}")


def embedding_of(model: nn.Module) -> Float[Tensor, "N W"]:
    return encoder_of(model).get_submodule("embedding").get_parameter("weight")


def is_direct(encoder: nn.Module) -> bool:
    """Whether its numbers are the prompt themselves, and not what a network makes the prompt of."""
    return [name for name, _ in encoder.named_children()] == ["embedding"]


def learned_numbers(model: nn.Module) -> Float[Tensor, "N W"]:
    """The prompt as it is stored: embeddings, or the keys and values of all layers."""
    encoder, weight = encoder_of(model), embedding_of(model)
    if is_direct(encoder):
        return weight
    return encoder(torch.arange(len(weight), device=weight.device)[None])[0]


def prompt_rows(model: nn.Module, like: Float[Tensor, "T D"]) -> Float[Tensor, "N D"]:
    """The learned embeddings, none where the prompt is keys and values or is switched off."""
    if not has_prompt(model) or has_prefix(model):
        return like[:0]
    return learned_numbers(model).to(like.dtype)


def prompt_keys(model: nn.Module) -> tuple[Float[Tensor, "L K N E"], Float[Tensor, "L K N E"]] | None:
    """The learned keys and values of every layer, by key head; None without a prefix."""
    if not has_prompt(model) or not has_prefix(model):
        return None
    assert isinstance(model, PeftModel)
    config = model.active_peft_config
    assert isinstance(config, PrefixTuningConfig)
    layers, heads = config.num_layers, config.num_attention_heads
    assert layers is not None, "PEFT fills in the sizes of the model"
    assert heads is not None, "PEFT fills in the sizes of the model"
    pairs = learned_numbers(model).unflatten(1, (layers, 2, heads, -1)).permute(1, 2, 3, 0, 4)
    return pairs[:, 0], pairs[:, 1]


def below(segments: Int[Tensor, "N 3"], count: int) -> Int[Tensor, "M 3"]:
    """The segments behind one of `count` tokens that every root continues."""
    moved = segments + segments.new_tensor([count, count, 1])
    return torch.cat([segments.new_tensor([[0, count, -1]]), moved])


def rooted(batch: Batch, count: int) -> Batch:
    """The batch with every tree hanging from one segment of `count` tokens, whose embeddings come from elsewhere."""
    places = torch.arange(count, dtype=batch.positions.dtype, device=batch.positions.device)
    return replace(
        batch,
        tokens=torch.cat([batch.tokens.new_zeros(count), batch.tokens]),
        positions=torch.cat([places, batch.positions + count]),
        segments=below(batch.segments, count),
        query=batch.query + count,
    )


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch as the decoder computes it: `count` rows stand before its own tokens."""

    batch: Batch
    embeddings: Float[Tensor, "T D"] | None
    count: int = 0


def with_prompt(
    model: nn.Module, embedding: nn.Module, batch: Batch, embeddings: Float[Tensor, "T D"] | None
) -> Prepared:
    """The batch with what a learned prompt adds to it: rows of their own, or positions that start later."""
    if not has_prompt(model):
        return Prepared(batch, embeddings)
    assert batch.entry is None, "nothing is computed before a prompt that is learned"
    if has_prefix(model):
        return Prepared(replace(batch, positions=batch.positions + positions_taken(model)), embeddings)
    own = embedding(batch.tokens) if embeddings is None else embeddings
    rows = prompt_rows(model, own)
    return Prepared(rooted(batch, len(rows)), torch.cat([rows, own]), len(rows))


def with_keys(model: nn.Module, forest: Forest, segments: Int[Tensor, "N 3"]) -> Forest:
    """The forest whose every token sees the learned keys as well; the forest itself where there are none."""
    found = prompt_keys(model)
    if found is None:
        return forest
    keys, values = found
    forest.learned = Learned(keys, values, Forest.of(below(segments, keys.shape[2])))
    return forest
