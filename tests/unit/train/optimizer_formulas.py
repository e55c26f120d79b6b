"""The update rules of optimisers, written out plainly from their papers."""

import math
import zlib

import torch

from tunesmith.models.blockwise import BLOCK, code_values
from tunesmith.train.optimizers import (
    SGD,
    Adafactor,
    AdamMini,
    AdamW,
    AdamW8bit,
    Apollo,
    GaLore,
    Lion,
    Muon,
    ScheduleFree,
)
from tunesmith.train.optimizers.adamw8bit import in_8_bits


def by_adamw(settings, name, weight, gradient, state, rates, step):
    rate, decay = rates
    state["m"] = state.get("m", torch.zeros_like(weight)).lerp(gradient, 1 - 0.9)
    state["v"] = state.get("v", torch.zeros_like(weight)).mul(0.999).addcmul(gradient, gradient, value=1 - 0.999)
    direction = (state["m"] / (1 - 0.9**step)) / ((state["v"] / (1 - 0.999**step)).sqrt() + 1e-8)
    return weight - rate * decay * weight - rate * direction


def by_adam_mini(settings, name, weight, gradient, state, rates, step):
    """arXiv:2406.16793 algorithm 2, block by block: a head of queries, a row of other matrices, or a whole vector."""
    rate, decay = rates
    state["m"] = 0.9 * state.get("m", torch.zeros_like(weight)) + 0.1 * gradient
    width = settings.head_width if "q_proj" in name and settings.head_width else 1
    updated = weight * (1 - rate * decay)
    for first in range(0, len(weight), len(weight) if weight.ndim == 1 else width):
        rows = slice(first, len(weight) if weight.ndim == 1 else first + width)
        squares = 0.999 * state.get(rows.start, 0.0) + 0.001 * gradient[rows].square().mean().item()
        state[rows.start] = squares
        size = math.sqrt(squares / (1 - 0.999**step)) + 1e-8
        updated[rows] -= rate * state["m"][rows] / (1 - 0.9**step) / size
    return updated


def by_sgd(settings, name, weight, gradient, state, rates, step):
    rate, decay = rates
    gradient = gradient + decay * weight
    state["m"] = settings.momentum * state["m"] + gradient if "m" in state else gradient
    return weight - rate * state["m"]


def by_lion(settings, name, weight, gradient, state, rates, step):
    """arXiv:2302.06675 algorithm 2."""
    rate, decay = rates
    mean = state.get("m", torch.zeros_like(weight))
    state["m"] = 0.99 * mean + 0.01 * gradient
    return weight - rate * ((0.9 * mean + 0.1 * gradient).sign() + decay * weight)


def by_adafactor(settings, name, weight, gradient, state, rates, step):
    """arXiv:1804.04235 algorithms 4 and 5, with the least squares where torch has them: under the root."""
    rate, decay = rates
    keep = 1 - step**-0.8
    relative = min(rate, step**-0.5) * max(1e-3, weight.square().mean().sqrt().item())
    weight = weight - rate * decay * weight
    if weight.ndim == 2:
        state["rows"] = keep * state.get("rows", 0) + (1 - keep) * gradient.square().mean(1)
        state["columns"] = keep * state.get("columns", 0) + (1 - keep) * gradient.square().mean(0)
        squares = torch.outer(state["rows"], state["columns"]) / state["rows"].mean()
    else:
        squares = state["v"] = keep * state.get("v", 0) + (1 - keep) * gradient.square()
    update = gradient / squares.clamp(min=torch.finfo(torch.float32).eps ** 2).sqrt()
    return weight - relative * update / max(1.0, update.square().mean().sqrt().item())


def by_muon(settings, name, weight, gradient, state, rates, step):
    """kellerjordan.github.io/posts/muon with the size of arXiv:2502.16982 eq. 4; the iteration is in bf16."""
    if weight.ndim != 2 or "layers" not in name:
        return by_adamw(settings, name, weight, gradient, state, rates, step)
    rate, decay = rates
    state["m"] = state.get("m", torch.zeros_like(weight)).lerp(gradient, 1 - 0.95)
    x = gradient.lerp(state["m"], 0.95).bfloat16()
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    x = x.T if weight.shape[0] > weight.shape[1] else x
    return weight - rate * decay * weight - rate * 0.2 * math.sqrt(max(weight.shape)) * x.float()


def by_schedule_free(settings, name, weight, gradient, state, rates, step):
    """arXiv:2405.15682 algorithm 1; `weight` is y."""
    rate, decay = rates
    state.update({"x": weight, "z": weight, "sum": 0.0} if not state else {})
    state["v"] = 0.999 * state.get("v", 0) + 0.001 * gradient**2
    rate *= math.sqrt(1 - 0.999**step)
    state["z"] = state["z"] - rate * gradient / (state["v"].sqrt() + 1e-8) - rate * decay * weight
    state["sum"] += rate**2
    share = rate**2 / state["sum"]
    state["x"] = (1 - share) * state["x"] + share * state["z"]
    return 0.1 * state["z"] + 0.9 * state["x"]


def by_adamw_8bit(settings, name, weight, gradient, state, rates, step):
    """AdamW whose means become the nearest of 256 numbers times the largest of a block of 256, after each step."""
    updated = by_adamw(settings, name, weight, gradient, state, rates, step)
    if in_8_bits(name, tuple(weight.shape)):
        state["m"] = nearest_of(state["m"], signed=True)
        state["v"] = nearest_of(state["v"].sqrt(), signed=False) ** 2
    return updated


def nearest_of(values, signed):
    found = []
    for block in values.flatten().split(BLOCK):
        scale = block.abs().max()  # ours multiplies by its reciprocal, to the same halves
        codes = code_values(signed).double()
        near = (block * scale.reciprocal()).half().double()[:, None].sub(codes).abs().argmin(1)
        found.append(code_values(signed)[near] * scale)
    return torch.cat(found).view(values.shape)


def low_rank_direction(settings, low, state, step):
    """Adam's for the projected gradient."""
    direction = by_adamw(settings, "", torch.zeros_like(low), low, state, (-1.0, 0.0), step)
    if settings.states == "int8":
        state["m"] = nearest_of(state["m"], signed=True)
        state["v"] = nearest_of(state["v"].sqrt(), signed=False) ** 2
    return direction


def by_galore(settings, name, weight, gradient, state, rates, step):
    """arXiv:2403.03507 algorithm 2, on the transposed matrix when that is the wide one."""
    if not settings.projects(name, tuple(weight.shape)):
        return by_adamw(settings, name, weight, gradient, state, rates, step)
    rate, decay = rates
    turned = weight.shape[0] > weight.shape[1]
    if (step - 1) % 3 == 0:
        left, _, right = torch.linalg.svd(gradient.float(), full_matrices=False)
        state["P"] = (right.T if turned else left)[:, :4].to(weight.dtype)
    low = gradient @ state["P"] if turned else state["P"].T @ gradient
    direction = low_rank_direction(settings, low, state, step)
    lifted = direction @ state["P"].T if turned else state["P"] @ direction
    weight = weight - rate * 0.25 * lifted
    return weight - rate * decay * weight


def by_apollo(settings, name, weight, gradient, state, rates, step):
    """arXiv:2412.05270 algorithm 1, by channels of the longer side."""
    if not settings.projects(name, tuple(weight.shape)):
        return by_adamw(settings, name, weight, gradient, state, rates, step)
    rate, decay = rates
    turned = weight.shape[0] > weight.shape[1]
    seed = zlib.crc32(f"{name} {(step - 1) // 3}".encode())
    drawn = torch.randn(min(weight.shape), 4, generator=torch.Generator().manual_seed(seed)) / 2
    low = gradient @ drawn.to(weight.dtype) if turned else drawn.to(weight.dtype).T @ gradient
    direction = low_rank_direction(settings, low, state, step)
    side = None if settings.scaling == "tensor" else 1 if turned else 0
    sizes = (each.square().sum(side, keepdim=True).sqrt() for each in (direction, low))
    update = gradient * (next(sizes) / next(sizes))
    if "norm" in state and update.norm() > 1.01 * state["norm"]:
        update = update * 1.01 * state["norm"] / update.norm()
    state["norm"] = update.norm()
    weight = weight - rate * update
    return weight - rate * decay * weight


FORMULAS = {
    AdamW: by_adamw,
    AdamMini: by_adam_mini,
    AdamW8bit: by_adamw_8bit,
    SGD: by_sgd,
    Lion: by_lion,
    Adafactor: by_adafactor,
    Muon: by_muon,
    ScheduleFree: by_schedule_free,
    GaLore: by_galore,
    Apollo: by_apollo,
}
