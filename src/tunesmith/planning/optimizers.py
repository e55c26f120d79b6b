"""What keeps an optimiser from doing what it is for, with this model and this method."""

from __future__ import annotations

from collections.abc import Iterator

from tunesmith.errors import Diagnostic, Fix, Where
from tunesmith.models.inventory import Trainable
from tunesmith.recipe import Recipe
from tunesmith.train.optimizers import AdamW8bit, Muon
from tunesmith.train.optimizers.adamw8bit import in_8_bits
from tunesmith.train.optimizers.base import is_hidden
from tunesmith.train.optimizers.low_rank import LowRankConfig

NAME = "train.optimizer.name"


def optimizer_problems(recipe: Recipe, trained: Trainable) -> Iterator[Diagnostic]:
    """Nothing where the method does not tell which tensors it trains."""
    optimizer, shapes = recipe.train.optimizer, trained.shapes
    if not shapes:
        return
    hidden = [shape for name, shape in shapes.items() if is_hidden(name, shape)]
    if isinstance(optimizer, LowRankConfig) and not any(optimizer.projects(*one) for one in shapes.items()):
        yield _nothing_to_project(optimizer, max(map(min, hidden), default=0))
    if isinstance(optimizer, Muon) and not hidden:
        message = "muon updates matrices in layers, and none is trained: it would be AdamW"
        yield Diagnostic("E303", message, where=Where(field=NAME), fixes=(Fix(f"{NAME}=adamw", {NAME: "adamw"}),))
    if isinstance(optimizer, AdamW8bit) and not any(in_8_bits(*one) for one in shapes.items()):
        message = "no trained tensor is large enough for states in 8 bits: nothing is saved"
        fixes = (Fix(f"{NAME}=adamw", {NAME: "adamw"}, effect="the same updates"),)
        yield Diagnostic("W302", message, "warning", Where(field=NAME), fixes=fixes)


def _nothing_to_project(optimizer: LowRankConfig, side: int) -> Diagnostic:
    key = "train.optimizer.rank"
    message = f"{optimizer.name} projects matrices in layers to {optimizer.rank} dimensions"
    if side < 2:
        fixes = (Fix("train.optimizer=adamw", {"train.optimizer": "adamw"}),)
        return Diagnostic("E302", f"{message}, and none is trained", where=Where(field=NAME), fixes=fixes)
    rank = max(1, side // 4)
    fixes = (Fix(f"{key}={rank}", {key: rank}), Fix("train.optimizer=adamw", {"train.optimizer": "adamw"}))
    message = f"{message}, and none that is trained has more on its shorter side (at most {side})"
    return Diagnostic("E302", message, where=Where(field=key), fixes=fixes)
