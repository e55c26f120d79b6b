"""Contradictions about new tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tunesmith.configuring.layers import Origin
from tunesmith.models.adapter_config import LowRankConfig, TargetedConfig
from tunesmith.models.kinds import BESIDE_ROWS
from tunesmith.recipe.clash import Clash
from tunesmith.recipe.settings import Recipe
from tunesmith.vocabulary import FIELD

METHOD, FIRST = "model.adapter.method", f"{FIELD}.0"
ENDS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "lm_head", "embed_out", "output")  # embedding and head


def new_tokens(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    tokens, adapter = recipe.model.new_tokens, recipe.model.adapter
    if not tokens:
        return
    clean = list(dict.fromkeys(stripped for token in tokens if (stripped := token.strip())))
    if list(tokens) != clean:
        message = "a new token is empty, has spaces around it, or is named twice"
        yield Clash(message, (FIRST,), {FIELD: clean}, "E336")
    if adapter.word not in BESIDE_ROWS:
        message = f"rows of new tokens are trained beside {', '.join(BESIDE_ROWS)}, and not with {adapter.title}"
        rate = {} if isinstance(adapter, LowRankConfig) else {"train.optimizer.lr": 2e-4}
        yield Clash(message, (METHOD, FIRST), {"model.adapter": "lora", **rate}, "E337")
    if recipe.task.reads == "values":
        message = f"{recipe.objective.title} trains a head of values, and new tokens are for models that write them"
        yield Clash(message, (FIRST, "objective.name"), {FIELD: []}, "E338")
    if recipe.compares_distributions:
        message = "kl_to_reference needs a head that stays as it is, and rows for new tokens are trained in it"
        yield Clash(message, (FIRST, "objective.name"), {FIELD: []}, "E338")
    if recipe.train.cache_trunk != "off":
        key, message = "train.cache_trunk", "rows of the embedding are trained, so no layer above it is frozen for good"
        yield Clash(message, (key, FIRST), {key: "off"}, "E338")
    if isinstance(adapter, TargetedConfig):
        yield from _trained_twice(adapter)


def _trained_twice(adapter: TargetedConfig) -> Iterator[Clash]:
    """An embedding or head that the adapter changes beside its new rows."""
    for key, names, rest in (("targets", adapter.targets, ["all"]), ("modules_to_save", adapter.modules_to_save, [])):
        ends = [name for name in names if name.rpartition(".")[2] in ENDS]
        kept = [name for name in names if name not in ends] or rest
        if ends:
            field = f"model.adapter.{key}"
            message = f"rows of new tokens are trained alone, and {field} names all of {', '.join(ends)}"
            yield Clash(message, (field, FIRST), {field: kept}, "E338")
