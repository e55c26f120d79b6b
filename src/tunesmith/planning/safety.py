"""What a plan says of checkpoints in the background and of rolling back after a spike."""

from __future__ import annotations

from collections.abc import Iterator

from tunesmith.errors import Diagnostic, Fix, Where
from tunesmith.models.adalora_config import AdaloraConfig
from tunesmith.models.changing_config import LisaConfig
from tunesmith.models.inventory import Inventory, Trainable
from tunesmith.planning.memory import MASTERS, shapes_of
from tunesmith.recipe import Recipe
from tunesmith.train.optimizers.paging import resident_bytes

BACKGROUND = "train.checkpoint.in_background"
SPIKE = "train.stability.on_spike"


def snapshot_bytes(recipe: Recipe, inventory: Inventory, trained: Trainable, width: int, device: str) -> int:
    """The copy that is written in the background: weights, states of the optimiser, masters, an average."""
    if not recipe.train.checkpoint.in_background:
        return 0
    optimizer = recipe.train.optimizer
    below = trained.base if width < 4 else 0
    size = width * trained.base + 4 * trained.adapters + below * MASTERS[optimizer.rounding]
    size += resident_bytes(optimizer.for_heads(inventory.head_dim), shapes_of(trained), device)
    return size + 4 * trained.total * (recipe.train.ema is not None)


def safety_problems(recipe: Recipe, ranks: int) -> Iterator[Diagnostic]:
    train = recipe.train
    if train.checkpoint.in_background and train.optimizer.paging != "off":
        yield Diagnostic(
            "E492",
            "states of the optimiser that are paged cannot be copied for a checkpoint in the background: the copy "
            "would have to be in the memory that paging saves",
            where=Where(field=BACKGROUND),
            fixes=(
                Fix(f"{BACKGROUND}=false", {BACKGROUND: False}),
                Fix("train.optimizer.paging=off", {"train.optimizer.paging": "off"}),
            ),
        )
    if train.checkpoint.in_background and ranks > 1:
        yield Diagnostic(
            "W464",
            f"{ranks} ranks agree on every checkpoint, so they save in step and not in the background",
            "warning",
            Where(field=BACKGROUND),
            fixes=(Fix(f"{BACKGROUND}=false", {BACKGROUND: False}, effect="the same, said plainly"),),
        )
    if train.stability.on_spike == "rollback" and isinstance(recipe.model.adapter, LisaConfig | AdaloraConfig):
        method = recipe.model.adapter.method
        yield Diagnostic(
            "E490",
            f"{method} changes what is trained from step to step, so weights of an earlier step do not fit a later one",
            where=Where(field=SPIKE),
            fixes=(
                Fix(f"{SPIKE}=skip", {SPIKE: "skip"}, effect="the step is left out, nothing else"),
                Fix("model.adapter.method=lora", {"model.adapter.method": "lora"}),
            ),
        )
