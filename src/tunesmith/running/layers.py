"""Tells, once and loudly, when a run trains without the written-out decoder layer."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from tunesmith.errors import Diagnostic, Fix
from tunesmith.models.layer.use import Use, use_of
from tunesmith.recipe import Recipe
from tunesmith.running.build import Context


def tell_layers(recipe: Recipe, model: nn.Module, around: Context) -> None:
    """Keep in `run.json` how many layers take the fast path and why others do not; W097 when there are others."""
    use = use_of(model)
    if around.mesh.is_first:
        around.run.add_to_run({"decoder_layers": use.to_json()})
    problem = slow_layers(recipe, use)
    if problem is not None:
        around.display.message(str(problem))
        around.tracker.text(f"{problem.code}: {problem.message}: {'; '.join(problem.evidence)}")
        around.tracker.event("warning", problem.to_json())


def slow_layers(recipe: Recipe, use: Use) -> Diagnostic | None:
    """W097 with every reason: a warning where a setting is in the way, a remark where there is no such layer."""
    if use.fast == use.layers:
        return None
    message = f"{use.layers - use.fast} of {use.layers} decoder layers run as transformers wrote them, which is slower"
    evidence = tuple(f"{count} layers: {reason}" for reason, count in use.obstacles.items())
    level = "warning" if use.known else "info"
    return Diagnostic("W097", message, level, evidence=evidence, fixes=tuple(fixes_of(recipe, use)))


def fixes_of(recipe: Recipe, use: Use) -> Iterator[Fix]:
    reasons, adapter = " ".join(use.obstacles), recipe.model.adapter
    if not use.known:
        return
    if recipe.model.attention == "dense":
        yield Fix("model.attention=auto", {"model.attention": "auto"}, effect="the same numbers up to rounding")
    if "attention probabilities are dropped" in reasons:
        yield Fix("set attention_dropout to 0 in the model's config.json", effect="trains without this noise")
    if adapter.drops > 0:
        yield Fix("model.adapter.dropout=0", {"model.adapter.dropout": 0.0}, effect="trains without this noise")
