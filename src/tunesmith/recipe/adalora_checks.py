"""What AdaLoRA needs of a run: gradients after the update, and steps between its first and its last phase."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tunesmith.configuring.layers import Origin
from tunesmith.errors import Diagnostic, Fix, Where
from tunesmith.models.adalora_config import AdaloraConfig
from tunesmith.recipe.clash import Clash
from tunesmith.recipe.settings import Recipe


def cut_ranks(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """Ranks are cut by weights and gradients after an update, in the weights that are to be used."""
    optimizer, method = recipe.train.optimizer, "model.adapter.method"
    if not isinstance(recipe.model.adapter, AdaloraConfig):
        return
    if optimizer.in_backward:
        key = "train.optimizer.in_backward"
        message = "AdaLoRA reads the gradients after the update, and with in_backward they are used up by then"
        yield Clash(message, (key, method), {key: False}, "E354")
    if optimizer.name == "schedule_free":
        key = "train.optimizer.name"
        message = "AdaLoRA cuts the weights that are trained, and with schedule_free their averages are used"
        yield Clash(message, (key, method), {key: "adamw"}, "E354")


def without_room(adapter: AdaloraConfig, total: int) -> Diagnostic | None:
    """E355 where no step is left between the two phases of a run of `total` steps."""
    before, last_cut = adapter.phases(total)
    if before < last_cut:
        return None
    changes = {"model.adapter.tinit": 0.0, "model.adapter.tfinal": 0.0} if total < 4 else {
        "model.adapter.tinit": 0.1, "model.adapter.tfinal": 0.3
    }  # fmt: skip
    return Diagnostic(
        "E355",
        f"AdaLoRA is to cut ranks after step {before} and before the last {total - last_cut}, of {total} steps",
        where=Where(field="model.adapter.tinit"),
        fixes=(Fix(" ".join(f"{key}={value:g}" for key, value in changes.items()), changes),),
    )
