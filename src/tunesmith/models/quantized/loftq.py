"""LoftQ (arXiv:2310.08659): a quantised weight and a low-rank adapter that together are near the exact weight.

Q_t = quant(W - s B_{t-1} A_{t-1}) and s B_t A_t = SVD_r(W - Q_t), with nothing to take away in the first round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tunesmith.models.inventory import LAYER
from tunesmith.models.quantization_config import QuantizationConfig
from tunesmith.models.quantized.packed import Packed, pack, whole
from tunesmith.models.spectral import Factors, check_rank, principal_factors


@dataclass(frozen=True, slots=True)
class Start:
    """The adapter that is to begin there: on layers by the ends of their names ("all": every one), from one on."""

    rank: int
    scale: float
    rounds: int
    iterations: int
    targets: tuple[str, ...] = ("all",)
    first: int = 0

    def reaches(self, name: str) -> bool:
        match = LAYER.search(name)
        if match is None or int(match[1]) < self.first:
            return False
        return self.targets == ("all",) or any(name == one or name.endswith(f".{one}") for one in self.targets)


class Begun(NamedTuple):
    """A and B to begin with, and A and s B that were taken out of the weight before it was quantised, if they were."""

    factors: Factors
    taken: Factors | None


@torch.no_grad()
def begin(weight: Float[Tensor, "O I"], settings: QuantizationConfig, start: Start) -> tuple[Packed, Begun]:
    """Q of the last round with A and B of that round."""
    check_rank(start.rank, tuple(weight.shape))
    exact = weight.float()
    taken: Factors | None = None
    for number in range(start.rounds):
        packed = pack(exact if taken is None else less(exact, taken), settings)
        rest = exact - whole(packed, torch.float32)
        factors = principal_factors(rest, start.rank, start.scale, start.iterations)
        if number == start.rounds - 1:
            return packed, Begun(factors, taken)
        taken = factors[0], start.scale * factors[1]
    raise AssertionError("there is a first round")


def less(weight: Float[Tensor, "O I"], taken: Factors) -> Float[Tensor, "O I"]:
    """W - (s B) A in fp32."""
    a, b = taken
    return torch.addmm(weight.float(), b.to(weight.device), a.to(weight.device), alpha=-1)
