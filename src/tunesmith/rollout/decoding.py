"""The state of a model while it decodes: evaluation mode, cached attention, a fast number type."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from tunesmith.models.forward import base_model
from tunesmith.models.processor import multiplies_fast

COPY_LIMIT = 8 * 2**30  # bytes of an fp32 copy that is still worth its memory


@contextmanager
def decoding(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the module to decode with; mode and attention are restored afterwards, the weights are never touched."""
    base = base_model(model)
    training = [module for module in model.modules() if module.training]
    attention = base.config._attn_implementation
    assert attention is not None
    try:
        yield settled(model)
    finally:
        base.set_attn_implementation(attention)
        for module in training:
            module.training = True


def settled(model: nn.Module) -> nn.Module:
    """The module to decode with for good: whoever lets go of `model` holds its weights once."""
    base = base_model(model)
    model.eval()
    base.set_attn_implementation(cached_attention(base))
    return fast_view(model)


def cached_attention(base: PreTrainedModel) -> str:
    """sdpa, or eager where scores are capped, which sdpa cannot do."""
    config = base.config.get_text_config(decoder=True).to_dict()
    return "eager" if config.get("attn_logit_softcapping") else "sdpa"


def fast_view(model: nn.Module) -> nn.Module:
    """The model itself, or an fp32 copy where the processor has no half-precision products and emulates them slowly."""
    base = base_model(model)
    if base.device.type != "cpu" or multiplies_fast(base.dtype) or 4 * base.num_parameters() > COPY_LIMIT:
        return model
    return copy.deepcopy(model).float()


class RoomyLayer(DynamicLayer):
    """A cache layer that writes into memory with room for the whole answer, instead of copying all of it every step."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.held: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            batch, heads, _, width = key_states.shape
            self.held = (
                key_states.new_empty(batch, heads, self.room, width),
                value_states.new_empty(batch, heads, self.room, value_states.shape[-1]),
            )
            self.keys, self.values = self.held[0][:, :, :0], self.held[1][:, :, :0]
        assert self.held is not None
        assert self.keys is not None
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        self.held[0][:, :, start:end] = key_states
        self.held[1][:, :, start:end] = value_states
        self.keys, self.values = self.held[0][:, :, :end], self.held[1][:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        assert self.held is not None
        assert self.keys is not None
        length = self.keys.shape[-2]
        self.held = (self.held[0][indices], self.held[1][indices])
        self.keys, self.values = self.held[0][:, :, :length], self.held[1][:, :, :length]


def cache_for(base: PreTrainedModel, room: int) -> DynamicCache:
    """An empty cache for `room` positions; layers with a sliding window keep transformers' own kind."""
    cache = DynamicCache(config=base.config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
