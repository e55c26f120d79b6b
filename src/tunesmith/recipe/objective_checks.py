"""Settings of objectives and references that contradict one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tunesmith.configuring.layers import DEFAULT, Origin
from tunesmith.data.config import DataConfig
from tunesmith.models.adapter_config import LowRankConfig
from tunesmith.recipe.clash import Clash
from tunesmith.recipe.settings import Recipe


def one_forward(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """Objectives of one recipe read the same records; only likelihood (sft) goes with every kind that is read so."""
    first = recipe.objective
    for index, other in enumerate(recipe.also):
        alike = other.kind == first.kind or (other.kind == "sequence" and first.reads == "logprobs")
        if alike and other.reads == first.reads:
            continue
        message = f"{first.title} learns from {NAMES[first.kind]}, {other.title} from {NAMES[other.kind]}"
        yield Clash(message, (f"also.{index}.name", "objective.name"), {"also": []}, effect=f"only {first.title}")


NAMES = {
    "sequence": "single answers",
    "pair": "pairs of answers",
    "feedback": "answers marked good or bad",
    "ranking": "ranked answers",
    "label": "texts with labels",
    "process": "answers judged step by step",
}


def no_noise(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """Policy and reference are compared: neither may be disturbed by chance."""
    if recipe.objective.kind in ("sequence", "label") or recipe.objective.reads == "values":
        return
    if recipe.model.adapter.drops > 0:
        message = f"{recipe.objective.title} compares log-probabilities: dropout would make them random"
        yield Clash(message, ("model.adapter.dropout", "objective.name"), {"model.adapter.dropout": 0.0})
    if recipe.train.neftune_alpha > 0:
        message = f"{recipe.objective.title} compares log-probabilities: noise on the embeddings would make them random"
        yield Clash(message, ("train.neftune_alpha", "objective.name"), {"train.neftune_alpha": 0.0})


def reference(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    settings, key = recipe.model.reference, "model.reference.source"
    written = any(name.startswith("model.reference") and origin != DEFAULT for name, origin in origins.items())
    if not recipe.has_reference:
        if written:
            names = " + ".join(objective.title for objective in recipe.objectives)
            message = f"{names} compares with no reference: model.reference is not used"
            yield Clash(message, (key, "objective.name"), {"model.reference": {}}, "W280")
        return
    if settings.source == "path" and settings.path is None:
        yield Clash("the reference has no path", (key, "model.reference.path"), {key: "start"})
    if settings.source in ("start", "adapter_off") and settings.path is not None:
        message = f"the reference is {settings.source} and also a path"
        yield Clash(message, ("model.reference.path", key), {"model.reference.path": None})
    if settings.source == "adapter_off" and recipe.model.adapter.kept == "model":
        yield Clash("there is no adapter to switch off", (key, "model.adapter.method"), {key: "start"})
    yield from _moving(recipe)


def _moving(recipe: Recipe) -> Iterator[Clash]:
    settings = recipe.model.reference
    every, mix = "model.reference.update_every", "model.reference.update_mix"
    if settings.update_every == 0:
        return
    if settings.source in ("adapter_off", "path") or settings.path is not None:
        message = "only the model as loaded can move towards the policy"
        yield Clash(message, (every, "model.reference.source"), {"model.reference.source": "start"})
    if isinstance(recipe.model.adapter, LowRankConfig) and settings.update_mix is not None and settings.update_mix < 1:
        message = (
            f"a mixture of two LoRA adapters is no LoRA adapter of the same rank: update_mix {settings.update_mix:g}"
        )
        yield Clash(message, (mix, "model.adapter.method"), {mix: 1.0}, effect="the reference becomes the policy")


def unused_selection(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """`data.train_on` chooses turns of single conversations; of compared answers every token counts."""
    if recipe.objective.kind != "sequence" and recipe.data.train_on != DataConfig().train_on:
        message = f"{recipe.objective.title} reads whole answers: data.train_on is not used"
        yield Clash(message, ("data.train_on", "objective.name"), {"data.train_on": "all_assistant"}, "W280")


OBJECTIVE_RULES = (one_forward, no_noise, reference, unused_selection)
