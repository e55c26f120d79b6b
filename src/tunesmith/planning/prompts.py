"""What a plan finds wrong with a learned prompt, before a weight is read."""

from __future__ import annotations

from collections.abc import Iterator

from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import Diagnostic, Fix, Where
from tunesmith.models.inventory import Inventory
from tunesmith.models.prompt_config import (
    TYPES,
    LearnedConfig,
    LlamaAdapterConfig,
    PrefixConfig,
    PromptConfig,
    VirtualConfig,
)

KEY = "model.adapter.tokens"


def prompt_problems(adapter: LearnedConfig, inventory: Inventory) -> Iterator[Diagnostic]:
    if isinstance(adapter, VirtualConfig):
        yield from _no_room(adapter, inventory.max_positions)
    if isinstance(adapter, PromptConfig | PrefixConfig) and adapter.init == "text":
        yield from _cut(adapter, inventory)
    if isinstance(adapter, LlamaAdapterConfig):
        yield from _unknown(inventory)


def _no_room(adapter: VirtualConfig, limit: int) -> Iterator[Diagnostic]:
    """E330: no place is left for a text of two tokens."""
    if adapter.tokens + 2 <= limit:
        return
    fewer = max(1, min(20, limit // 4))
    message = f"{adapter.tokens:,} learned tokens leave no room for a text: the model was made for {limit:,} positions"
    yield Diagnostic("E330", message, where=Where(field=KEY), fixes=(Fix(f"{KEY}={fewer}", {KEY: fewer}),))


def _cut(adapter: PromptConfig | PrefixConfig, inventory: Inventory) -> Iterator[Diagnostic]:
    """E332 for a text without a token, W330 for one of more tokens than are learned."""
    key = "model.adapter.init_text"
    count = len(load_tokenizer(inventory.folder).encode(adapter.init_text or "", specials=True))
    if count == 0:
        fix = Fix("model.adapter.init=vocabulary", {"model.adapter.init": "vocabulary", key: None})
        yield Diagnostic("E332", "the text to begin as has no token", where=Where(field=key), fixes=(fix,))
    elif count > adapter.tokens:
        message = f"the text to begin as has {count:,} tokens: the prompt begins as the first {adapter.tokens:,}"
        yield Diagnostic("W330", message, "warning", Where(field=key), fixes=(Fix(f"{KEY}={count}", {KEY: count}),))


def _unknown(inventory: Inventory) -> Iterator[Diagnostic]:
    """E333: PEFT, whose files are read and written, has no such attention for the model."""
    apart = inventory.heads * inventory.head_dim != inventory.hidden
    biased = any(name.endswith("self_attn.o_proj.bias") for name in inventory.tensors)
    if inventory.model_type not in TYPES:
        reason = f"known for {' and '.join(TYPES)}, and the model is {inventory.model_type}"
    elif apart or biased:
        reason = (
            f"stored for attention {'as wide as its states' if apart else 'without biases'}, and the model has other"
        )
    else:
        return
    changes = {"model.adapter": "prefix", "train.optimizer.lr": PrefixConfig.usual_rate[1]}
    words = " ".join(f"{key}={value}" for key, value in changes.items())
    fix = Fix(words, changes, effect="learned keys and values for every architecture")
    yield Diagnostic("E333", f"adaption prompts are {reason}", where=Where(field="model.adapter.method"), fixes=(fix,))
