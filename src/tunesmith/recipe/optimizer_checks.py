"""What an optimiser's settings must be for what is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tunesmith.configuring.layers import Origin
from tunesmith.models.adapter_config import FullConfig, LoraFaConfig, LowRankConfig, PlacedConfig
from tunesmith.models.changing_config import LisaConfig
from tunesmith.recipe.clash import Clash
from tunesmith.recipe.settings import Recipe
from tunesmith.train.optimizers import low_rank

HIGHEST_FULL_RATE = 1e-4  # of AdamW, from which full tuning usually diverges
FALLING = ("linear", "cosine", "wsd", "inverse_sqrt")


def rates(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """Rates that nothing learns at, and rates of LoRA for full tuning."""
    adapter, optimizer = recipe.model.adapter, recipe.train.optimizer
    saved = recipe.task.reads == "values" or adapter.saved
    rate, ratio, method = "train.optimizer.lr_new_layers", "train.optimizer.lr_ratio_b", "model.adapter.method"
    if optimizer.lr_new_layers is not None and not saved:
        message = f"a rate of {optimizer.lr_new_layers:g} for new layers, but there are none"
        yield Clash(message, (rate, "model.adapter.modules_to_save"), {rate: None})
    has_both = isinstance(adapter, LowRankConfig) and not isinstance(adapter, LoraFaConfig)
    if optimizer.lr_ratio_b != 1 and not has_both:
        message = f"B is to learn {optimizer.lr_ratio_b:g} times as fast as A, but {adapter.method} has no such factors"
        yield Clash(message, (ratio, method), {ratio: 1.0}, "E300", f"or {method}=lora")
    scale = optimizer.rate_scale
    tunes = isinstance(adapter, FullConfig) and recipe.model.fresh is None
    if tunes and scale is not None and optimizer.lr >= HIGHEST_FULL_RATE * scale:
        message = f"a learning rate of {optimizer.lr:g} is one for LoRA; full fine-tuning usually diverges with it"
        yield Clash(message, ("train.optimizer.lr", method), {"train.optimizer.lr": 2e-5 * scale}, "W011")


def averages(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """The average of schedule-free iterates takes the place of a falling rate."""
    schedule, key = recipe.train.schedule, "train.schedule.name"
    if recipe.train.optimizer.name == "schedule_free" and schedule.name in FALLING:
        message = (
            f"schedule_free averages its steps instead of letting the rate fall, and the rate falls ({schedule.name}): "
            "late steps then count for little"
        )
        yield Clash(message, ("train.optimizer.name", key), {key: "constant"}, "W300")


def drawn(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """What cannot be dropped or set anew with every draw of layers."""
    optimizer, method, name = recipe.train.optimizer, "model.adapter.method", "train.optimizer.name"
    if not isinstance(recipe.model.adapter, LisaConfig):
        return
    if optimizer.name == "schedule_free":
        message = "LISA drops the states of layers that are no longer drawn, and those of schedule_free hold the result"
        yield Clash(message, (name, method), {name: "adamw"}, "E353")
    if optimizer.lr_layer_decay != 1:
        key = "train.optimizer.lr_layer_decay"
        message = "LISA trains other layers after every draw, and the rates are to follow the highest trained one"
        yield Clash(message, (key, method), {key: 1.0}, "E353")


def projected(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """A projection of gradients is for matrices trained in full; factors of an adapter are low already."""
    adapter, optimizer = recipe.model.adapter, recipe.train.optimizer
    if isinstance(optimizer, low_rank.LowRankConfig) and isinstance(adapter, PlacedConfig):
        message = f"{optimizer.name} projects the gradients of whole matrices, and {adapter.method} trains none"
        fields = ("train.optimizer.name", "model.adapter.method")
        yield Clash(message, fields, {"model.adapter": "full"}, "E301", "or train.optimizer=adamw8bit")
