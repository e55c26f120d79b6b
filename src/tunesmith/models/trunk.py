"""The trunk: the decoder layers below everything that is trained, left out of a pass or run alone.

For the length of one pass other modules stand in the list of layers, so that what transformers does around the layers
(positions, masks, scaled embeddings) is its own code for every architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor, nn

LAYERS = "layers"
# Decoders that hand nothing from layer to layer but the states; tested: a pass that begins above the trunk is equal.
TYPES = frozenset(["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "smollm3", "olmo2"])


class Given(nn.Module):
    """In the place of a layer: whatever comes in, the states that were computed before go out."""

    def __init__(self, states: Float[Tensor, "1 T D"]) -> None:
        super().__init__()
        self.states = states

    def forward(self, hidden_states: Tensor, *places: object, **_: object) -> Float[Tensor, "1 T D"]:
        return self.states


class End(nn.Module):
    """In the place of the norm behind all layers: nothing happens to the states."""

    def forward(self, hidden_states: Float[Tensor, "1 T D"]) -> Float[Tensor, "1 T D"]:
        return hidden_states


@contextmanager
def left_out(decoder: nn.Module, count: int, states: Float[Tensor, "1 T D"]) -> Iterator[None]:
    """The decoder begins above its `count` lowest layers, with these states."""
    layers = list(layers_of(decoder))
    with replaced(decoder, LAYERS, nn.ModuleList([*[Given(states)] * count, *layers[count:]])):
        yield


@contextmanager
def alone(decoder: nn.Module, count: int) -> Iterator[None]:
    """The decoder ends behind its `count` lowest layers."""
    lowest = nn.ModuleList(list(layers_of(decoder))[:count])
    with replaced(decoder, LAYERS, lowest), replaced(decoder, "norm", End()):
        yield


@contextmanager
def replaced(parent: nn.Module, name: str, other: nn.Module) -> Iterator[None]:
    own = parent.get_submodule(name)
    parent.set_submodule(name, other)
    try:
        yield
    finally:
        parent.set_submodule(name, own)


def layers_of(decoder: nn.Module) -> Sequence[nn.Module]:
    layers = decoder.get_submodule(LAYERS)
    assert isinstance(layers, nn.ModuleList), "decoders of the known types keep their layers in a list"
    return list(layers)


def frozen_layers(layers: Sequence[nn.Module], embedding: nn.Module) -> int:
    """How many lowest layers have nothing to train in them or below them; the highest layer never counts."""
    if learns(embedding):
        return 0
    return next((number for number, layer in enumerate(layers) if learns(layer)), len(layers) - 1)


def learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
