"""What a decoder layer computes with: its shape, and its parameters as transformers and PEFT hold them just now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tunesmith.models.layer.projection import Projection


@dataclass(frozen=True, slots=True)
class Shape:
    """Query heads share key heads of one width; a row sees at most `window` keys."""

    heads: int
    key_heads: int
    width: int
    scale: float
    window: int | None
    rotary: bool

    @property
    def query_width(self) -> int:
        return self.heads * self.width

    @property
    def key_width(self) -> int:
        return self.key_heads * self.width


@dataclass(frozen=True, slots=True)
class Norm:
    weight: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Norms:
    """Those the architecture has: before or after each half of the layer, and of queries and keys.

    One of queries is as wide as a head, or as all heads together.
    """

    before_attention: Norm | None
    after_attention: Norm | None
    before_mlp: Norm | None
    after_mlp: Norm | None
    query: Norm | None
    key: Norm | None

    def all(self) -> Sequence[Norm]:
        each = self.before_attention, self.after_attention, self.before_mlp, self.after_mlp, self.query, self.key
        return [norm for norm in each if norm is not None]


@dataclass(frozen=True, slots=True)
class Weights:
    qkv: Projection
    out: Projection
    gate_up: Projection
    down: Projection
    norms: Norms

    def trained(self) -> list[Tensor]:
        """The parameters that want a gradient, in a fixed order."""
        projections = (self.qkv, self.out, self.gate_up, self.down)
        held = [tensor for each in projections for part in each.parts for tensor in part.tensors()]
        held += [norm.weight for norm in self.norms.all()]
        return [tensor for tensor in held if tensor.requires_grad]
