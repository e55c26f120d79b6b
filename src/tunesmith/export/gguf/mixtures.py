"""Which matrices of a layer a mixture stores finer: the rules by which llama.cpp makes its S, M and L types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gguf import GGMLQuantizationType as Type

VALUE, DOWN, OUTPUT = ("attn_v.weight", "attn_qkv.weight"), ("ffn_down.weight",), ("attn_output.weight",)
SHARED = 4  # query heads that read one value, from which on its matrix is so small that more bits cost little
LARGE = 80  # layers of models whose value matrices are an eighth of the others


@dataclass(frozen=True, slots=True)
class Layout:
    """How many layers, how many query heads share a key and a value, whether the head is the embedding."""

    layers: int
    shared: int
    tied: bool


@dataclass(frozen=True, slots=True)
class Rule:
    """`which` layers: all, `most` of use (the first and last eighth and every third between), or the first few.

    A number from 1 on counts layers, a share of them below. `shared` is the least sharing for which the rule holds.
    """

    parts: tuple[str, ...]
    kind: Type
    which: Literal["all", "most"] | float = "all"
    shared: int = 1

    def holds(self, name: str, layout: Layout) -> bool:
        if not name.endswith(self.parts) or layout.shared < self.shared:
            return False
        layer, layers = int(name.split(".")[1]), layout.layers
        if self.which == "all":
            return True
        if self.which == "most":
            eighth = layers // 8
            return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
        return layer < (self.which if self.which >= 1 else int(layers * self.which))


MIXTURES: Mapping[str, tuple[Rule, ...]] = {  # of the rules for a matrix the first that holds counts
    "Q2_K": (
        Rule(VALUE, Type.Q4_K, shared=SHARED),
        Rule((*VALUE, *DOWN, *OUTPUT), Type.Q3_K),
    ),
    "Q3_K_M": (
        Rule(VALUE, Type.Q5_K, 2),
        Rule(DOWN, Type.Q5_K, 1 / 16),
        Rule((*VALUE, *DOWN, *OUTPUT), Type.Q4_K),
    ),
    "Q3_K_L": (Rule((*VALUE, *DOWN, *OUTPUT), Type.Q5_K),),
    "Q4_K_S": (Rule(VALUE, Type.Q5_K, 4), Rule(DOWN, Type.Q5_K, 1 / 8)),
    "Q4_K_M": (Rule((*VALUE, *DOWN), Type.Q6_K, "most"),),
    "Q5_K_M": (Rule((*VALUE, *DOWN), Type.Q6_K, "most"),),
}


def mixed(mixture: str, usual: Type, name: str, layout: Layout) -> Type:
    """What a matrix of a layer is stored as; `usual` where no rule holds."""
    found = next((rule.kind for rule in MIXTURES.get(mixture, ()) if rule.holds(name, layout)), usual)
    if layout.layers == LARGE and layout.shared > 1 and name.endswith(VALUE) and found in (Type.Q3_K, Type.Q4_K):
        return Type.Q5_K
    return found
