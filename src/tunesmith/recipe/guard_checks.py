"""What guards against forgetting need of the rest of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tunesmith.configuring.layers import Origin
from tunesmith.models.adapter_config import TargetedConfig
from tunesmith.models.changing_config import LisaConfig
from tunesmith.recipe.clash import Clash
from tunesmith.recipe.objective_checks import NAMES
from tunesmith.recipe.settings import Recipe


def general_data(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """General data is mixed into single answers and texts; its loss is that of a language model."""
    general, key = recipe.data.general, "data.general.train"
    if general.train and recipe.task.kind != "sequence":
        message = f"general data is single answers or texts, but {recipe.objective.title} learns from "
        effect = "or measure them: data.general.eval=FILE"
        yield Clash(message + NAMES[recipe.task.kind], (key, "objective.name"), {key: []}, "E383", effect)
    if general.eval and recipe.task.reads == "values":
        message = f"the loss on general data is one of next tokens, and {recipe.objective.title} trains another head"
        key = "data.general.eval"
        yield Clash(message, (key, "objective.name"), {key: []}, "E384")


def watched(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """Early stopping on general data needs such data, and more than one look at it."""
    train, key = recipe.train, "train.early_stopping.watch"
    if train.early_stopping is None or train.early_stopping.watch != "general":
        return
    if not recipe.data.general.eval:
        message = "early stopping watches the loss on general data, but there is none held out"
        yield Clash(message, (key, "data.general.eval"), {key: "eval"}, "E385", "or give data.general.eval=FILE")
    elif train.evaluate_every == 0:
        message = "early stopping watches the loss on general data, but it is measured only at the end"
        yield Clash(message, (key, "train.evaluate_every"), {"train.evaluate_every": 50}, "E385")


def averaged(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """A running average, or a pull to the start, beside an optimiser that is not at the weights it trains."""
    train, name = recipe.train, "train.optimizer.name"
    if train.ema is not None and train.optimizer.name == "schedule_free":
        message = "schedule_free's result is an average already"
        yield Clash(message, ("train.ema.decay", name), {"train.ema": None}, "E386")
    if train.l2_to_start == 0:
        return
    key = "train.l2_to_start"
    if train.optimizer.name == "schedule_free":
        message = "schedule_free trains between its average and its last step, so that weights cannot be drawn aside"
        yield Clash(message, (key, name), {key: 0.0}, "E386")
    if train.optimizer.in_backward:
        message = "the weights are drawn to their start before the update, and with in_backward that is done by then"
        yield Clash(message, (key, "train.optimizer.in_backward"), {"train.optimizer.in_backward": False}, "E386")


def distributions(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """Whole distributions of a reference are those of the model itself, without its adapter or as it began."""
    if not recipe.compares_distributions:
        return
    settings, adapter = recipe.model.reference, recipe.model.adapter
    if settings.path is not None:
        message = "kl_to_reference needs the reference in every step, and another model is gone by then"
        key = "model.reference.path"
        yield Clash(message, (key, "model.reference.source"), {key: None, "model.reference.source": "start"}, "E387")
    if not isinstance(adapter, TargetedConfig) or "lm_head" not in adapter.targets or settings.source == "adapter_off":
        return
    message = "the head has an adapter, whose start kl_to_reference cannot hold beside the trained one"
    if settings.update_every:
        key = "model.reference.update_every"
        yield Clash(message, (key, "model.adapter.targets"), {key: 0}, "E387")
    elif recipe.model.adapter_path is not None:
        key = "model.reference.source"
        yield Clash(message, (key, "model.adapter.targets"), {key: "adapter_off"}, "E387")


def looked_at(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """Layers are watched around the update, when all gradients are there."""
    key, other = "train.watch_layers", "train.optimizer.in_backward"
    if recipe.train.watch_layers and recipe.train.optimizer.in_backward:
        message = "gradients of layers are looked at before the update, and with in_backward they are used up by then"
        yield Clash(message, (key, other), {key: 0}, "E388", f"or {other}=false")


def beside_masters(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """Averages, pulls and looks read fp32 weights between steps, of the same parameters all along."""
    train, off = recipe.train, {"train.ema": None, "train.l2_to_start": 0.0, "train.watch_layers": 0}
    used = [
        key for key, is_used in zip(off, (train.ema, train.l2_to_start, train.watch_layers), strict=True) if is_used
    ]
    if not used:
        return
    key = used[0]
    field = "train.ema.decay" if key == "train.ema" else key
    if train.optimizer.rounding != "masters":
        message = f"{key} reads trained weights in fp32 between the steps, and there are none with this rounding"
        other = "train.optimizer.rounding"
        yield Clash(message, (field, other), {other: "masters"}, "E389", "or leave the guard out")
    elif isinstance(recipe.model.adapter, LisaConfig):
        message = f"{key} follows the same weights all along, and LISA trains other layers after every draw"
        yield Clash(message, (field, "model.adapter.method"), {one: off[one] for one in used}, "E389")


GUARD_RULES = (general_data, watched, averaged, distributions, looked_at, beside_masters)
