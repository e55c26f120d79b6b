"""Several updates of one layer become one: their sum, exact or of a lower rank, and what TIES and DARE make of them.

TIES (arXiv:2306.01708) trims, elects a sign for every number and averages those that agree; DARE (arXiv:2311.03099)
drops numbers by chance and rescales the rest. Both work on the products s B A, one layer at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tunesmith.errors import ModelError, UsageError, Where
from tunesmith.models.adapter_folder import PREFIX
from tunesmith.models.adapters.updates import LowRankAdapter, Update
from tunesmith.models.spectral import Factors, sketched

Rule = Literal["linear", "cat", "svd", "ties", "dare", "dare_ties"]
RULES: tuple[Rule, ...] = ("linear", "cat", "svd", "ties", "dare", "dare_ties")
SPARSE = ("ties", "dare", "dare_ties")
EXACT_UP_TO = 2048  # smaller side of matrices that are decomposed exactly; wider ones by subspace iterations
ITERATIONS = 8
EPSILON = torch.finfo(torch.float32).eps


@dataclass(frozen=True, slots=True)
class Mix:
    """How updates are combined; without weights their mean is taken (of TIES, which is a mean itself, the whole).

    `rank` cuts the result; None is what holds the sum exactly, or where nothing does the largest rank of the inputs.
    """

    rule: Rule = "linear"
    weights: tuple[float, ...] = ()
    density: float = 0.2
    rank: int | None = None
    seed: int = 0

    def weights_of(self, count: int) -> tuple[float, ...]:
        each = 1.0 if self.rule in ("ties", "dare_ties") else 1 / count
        return self.weights or (each,) * count


@dataclass(slots=True)
class Kept:
    """How much of the updates' squares a result of limited rank keeps."""

    whole: float = 0.0
    kept: float = 0.0
    lowest: tuple[float, str] = (1.0, "")
    ranks: set[int] = field(default_factory=set)

    def add(self, module: str, whole: float, kept: float, rank: int) -> None:
        self.whole, self.kept = self.whole + whole, self.kept + kept
        share = min(1.0, kept / whole) if whole else 1.0
        self.lowest = min(self.lowest, (share, module.removeprefix(PREFIX)))
        self.ranks.add(rank)

    @property
    def share(self) -> float:
        return min(1.0, self.kept / self.whole) if self.whole else 1.0

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        lowest, layer = found.pop("lowest")
        ranks = sorted(found.pop("ranks"))
        error = math.sqrt(max(0.0, 1 - self.share))
        return {"kept": self.share, "error": error, "lowest": lowest, "layer": layer, "ranks": [ranks[0], ranks[-1]]}


def combine(adapters: Sequence[LowRankAdapter], mix: Mix) -> tuple[dict[str, Factors], Kept]:
    """The combined update of every layer that one of them changes, as B A, and how much of it the rank keeps.

    A layer that an adapter leaves alone has no update there, which is an update of zeros. Raises UsageError E360 for
    numbers that make no sense, ModelError E363 when a layer has other shapes in another adapter.
    """
    check_mix(mix, len(adapters))
    weights = mix.weights_of(len(adapters))
    chance = torch.Generator().manual_seed(mix.seed)
    limit = mix.rank or max(adapter.rank for adapter in adapters)
    factors, kept = {}, Kept()
    for module in sorted({module for adapter in adapters for module in adapter.updates}):
        updates = [adapter.updates.get(module) for adapter in adapters]
        present = check_shapes(adapters, updates, module)
        if mix.rule not in SPARSE:
            pairs = [(weight, one) for weight, one in zip(weights, updates, strict=True) if one is not None]
            found, whole, left = summed(pairs, mix, limit)
        else:
            dense = [torch.zeros(present) if one is None else one.dense() for one in updates]
            found, whole, left = principal(sparse(dense, weights, mix, chance), limit)
        factors[module] = found
        kept.add(module, whole, left, len(found[0]))
    return factors, kept


def check_mix(mix: Mix, count: int) -> None:
    problems = {
        "--weights": bool(mix.weights) and len(mix.weights) != count,
        "--density": not 0 < mix.density <= 1,
        "--rank": mix.rank is not None and (mix.rank < 1 or mix.rule == "cat"),
    }
    told = {
        "--weights": f"{len(mix.weights)} weights for {count} adapters: give one for each, in their order",
        "--density": f"the density is {mix.density:g}: it is the share of numbers that stay, above 0 and at most 1",
        "--rank": f"the rank is {mix.rank}: it is at least 1, and of cat the sum of all ranks (svd takes one)",
    }
    if not all(math.isfinite(weight) for weight in mix.weights):
        raise UsageError("E360", "a weight is not finite", where=Where("command line", field="--weights"))
    if mix.rule in ("ties", "dare_ties") and any(weight <= 0 for weight in mix.weights):
        raise UsageError(
            "E360",
            f"{mix.rule} elects the sign that most adapters agree on: its weights are above 0",
            where=Where("command line", field="--weights"),
            fixes=["to take an adapter away, use --method linear with a weight below 0"],
        )
    for option in (option for option, wrong in problems.items() if wrong):
        raise UsageError("E360", told[option], where=Where("command line", field=option))


def check_shapes(adapters: Sequence[LowRankAdapter], updates: list[Update | None], module: str) -> tuple[int, int]:
    """The one shape (outputs, inputs) of a layer."""
    shapes = {
        str(adapter.folder): (len(one.b), one.a.shape[1])
        for adapter, one in zip(adapters, updates, strict=True)
        if one is not None
    }
    if len(set(shapes.values())) > 1:
        raise ModelError(
            "E363",
            f"{module.removeprefix(PREFIX)} has other shapes in other adapters: they belong to different models",
            evidence=[f"{folder}: {shape[0]} x {shape[1]}" for folder, shape in shapes.items()],
            fixes=["combine adapters of one base model"],
        )
    return next(iter(shapes.values()))


def summed(pairs: list[tuple[float, Update]], mix: Mix, limit: int) -> tuple[Factors, float, float]:
    """The weighted sum of products: beside one another (cat), of its own rank (linear), or of a limited one (svd)."""
    a = torch.cat([one.a for _, one in pairs])
    b = torch.cat([weight * one.scale * one.b for weight, one in pairs], dim=1)
    if mix.rule == "cat":
        return (a, b), 1.0, 1.0
    u, s, vh = product_triples(a, b)
    if mix.rule == "linear" and mix.rank is None:
        rank = max(1, int((s > s[0] * max(len(b), a.shape[1]) * EPSILON).sum()))
    else:
        rank = min(limit, len(s))
    root = s[:rank].sqrt()
    found = ((root[:, None] * vh[:rank]).float(), (u[:, :rank] * root).float())
    return found, s.square().sum().item(), s[:rank].square().sum().item()


def product_triples(a: Float[Tensor, "R I"], b: Float[Tensor, "O R"]) -> tuple[Tensor, Tensor, Tensor]:
    """The singular triples of B A, in fp64 and without forming it."""
    left, right = torch.linalg.qr(b.double()), torch.linalg.qr(a.double().T)
    u, s, vh = torch.linalg.svd(left.R @ right.R.T, full_matrices=False)
    return left.Q @ u, s, vh @ right.Q.T


def principal(delta: Float[Tensor, "O I"], rank: int) -> tuple[Factors, float, float]:
    """The best approximation of a rank, with the squares of the whole and of what is kept."""
    rank = min(rank, *delta.shape)
    if min(delta.shape) > EXACT_UP_TO:
        u, s, vh = sketched(delta, rank, ITERATIONS)
    else:
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    root = s[:rank].sqrt()
    factors = (root[:, None] * vh[:rank]).contiguous(), (u[:, :rank] * root).contiguous()
    return factors, delta.double().square().sum().item(), s[:rank].double().square().sum().item()


def sparse(deltas: list[Tensor], weights: Sequence[float], mix: Mix, chance: torch.Generator) -> Float[Tensor, "O I"]:
    """What TIES, DARE, or TIES on what DARE leaves makes of the updates of one layer."""
    if mix.rule == "ties":
        return disjoint_mean([trimmed(delta, mix.density) for delta in deltas], weights)
    dropped = [rescaled(delta, mix.density, chance) for delta in deltas]
    if mix.rule == "dare_ties":
        return disjoint_mean(dropped, weights)
    return torch.stack([weight * delta for weight, delta in zip(weights, dropped, strict=True)]).sum(0)


def trimmed(delta: Float[Tensor, "O I"], density: float) -> Float[Tensor, "O I"]:
    """Only the share of the numbers that are largest in size (arXiv:2306.01708 section 4.1)."""
    count = int(density * delta.numel())
    chosen = delta.abs().flatten().topk(count).indices
    kept = torch.zeros(delta.numel(), dtype=torch.bool).index_fill_(0, chosen, True)
    return delta * kept.view(delta.shape)


def rescaled(delta: Float[Tensor, "O I"], density: float, chance: torch.Generator) -> Float[Tensor, "O I"]:
    """Numbers stay with the chance `density`, and then grow by 1 / density (arXiv:2311.03099 eq. 4)."""
    stays = torch.rand(delta.shape, generator=chance) < density
    return delta * stays / density


def disjoint_mean(deltas: Sequence[Tensor], weights: Sequence[float]) -> Float[Tensor, "O I"]:
    """The mean, for every number, over the adapters whose sign is that of the sum (arXiv:2306.01708 section 4.1)."""
    stack = torch.stack(list(deltas))
    elected = stack.sum(0).sign()
    agrees = (stack.sign() == elected) & (elected != 0)
    weighted = stack * torch.tensor(weights).view(-1, *[1] * elected.dim())
    return (weighted * agrees).sum(0) / agrees.sum(0).clamp(min=1)
