"""How long the matrix products of a model take alone, measured in their own shapes on this machine."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.models.eight_bit import Linear8
from tunesmith.models.forward import base_model
from tunesmith.models.head import COLUMNS
from tunesmith.models.inventory import LAYER, Inventory
from tunesmith.planning.peak import fastest
from tunesmith.train.work import Rates

ROWS = {"cpu": 1024, "cuda": 8192}  # tokens of one product; more are hardly faster
BLOCK = 256  # tokens of a block of attention; longer ones would write their scores to memory and read them again
SECONDS = 0.05  # spent on each shape
HEADS = frozenset(("lm_head", "score"))  # multiplied at scored places only


def matmul_seconds(model: nn.Module, inventory: Inventory, lowest: int) -> tuple[Rates, Rates]:
    """Seconds per token, per scored place and per pair: of passes with gradient, and of forward passes.

    Every linear layer counts once forward, once for the gradient of its rows from layer `lowest` on, and once more when
    its weight is trained; attention counts two products forward and five backward, half of each masked.
    """
    base = base_model(model)
    known: dict[tuple[int, ...], float] = {}
    sums = {"token": 0.0, "scored": 0.0}
    forward = {"token": 0.0, "scored": 0.0}
    for name, module in model.named_modules():
        words = name.split(".")
        if not isinstance(module, nn.Linear | Linear8) or "original_module" in words:  # PEFT trains a copy in its place
            continue
        unit = "scored" if HEADS.intersection(words) else "token"
        weight = weight_of(module, base)
        layer = LAYER.search(name)
        reached = layer is None or int(layer[1]) >= lowest
        seconds = timed(known, weight.detach().to(base.dtype))
        sums[unit] += seconds * (1 + reached + weight.requires_grad)
        forward[unit] += seconds
    pair = pair_seconds(inventory, base.dtype, base.device)
    reached_share = max(0, inventory.layers - lowest) / inventory.layers
    return Rates(**sums, pair=pair * (2 + 5 * reached_share)), Rates(**forward, pair=pair * 2)


def weight_of(module: nn.Linear | Linear8, base: PreTrainedModel) -> Tensor:
    """The weight, or one of the same shape where there are products in 8 bits: the floor is that of exact ones."""
    if isinstance(module, nn.Linear):
        return module.weight
    return torch.zeros(module.out_features, module.in_features, dtype=base.dtype, device=base.device)


def timed(known: dict[tuple[int, ...], float], weight: Tensor) -> float:
    """Seconds per row of rows times the weight, piece by piece where it is long; one shape is measured once."""
    key = tuple(weight.shape)
    if key not in known:
        piece, rows = weight[:COLUMNS], ROWS[weight.device.type]
        given = weight.new_ones(rows, weight.shape[1])
        out = weight.new_empty(rows, len(piece))
        seconds = fastest(lambda: torch.mm(given, piece.T, out=out), weight.device.type, SECONDS)
        known[key] = seconds / rows * len(weight) / len(piece)
    return known[key]


def pair_seconds(inventory: Inventory, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds per pair of one of attention's products, in all layers."""
    shape = inventory.heads, BLOCK, inventory.head_dim
    query, key = (torch.ones(shape, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty(inventory.heads, BLOCK, BLOCK, dtype=dtype, device=device)
    seconds = fastest(lambda: torch.bmm(query, key.transpose(1, 2), out=out), device.type, SECONDS)
    return seconds / BLOCK**2 * inventory.layers
