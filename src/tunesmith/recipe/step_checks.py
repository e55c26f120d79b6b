"""What a step must be for what is done with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tunesmith.configuring.layers import Origin
from tunesmith.recipe.clash import Clash
from tunesmith.recipe.settings import Recipe


def company(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """An objective that looks at the whole step first compares the records of the step: one alone has no other."""
    train = recipe.train
    if train.tokens_per_step is not None or train.sequences_per_step != 1:
        return
    for objective in recipe.objectives:
        if objective.looks_ahead:
            message = f"{objective.title} compares the records of a step with each other, and a step has one"
            fields = ("train.sequences_per_step", "objective.name")
            yield Clash(message, fields, {"train.sequences_per_step": 16})
            return


def in_backward(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """Updates inside the backward pass come before the norm of the whole gradient is known."""
    train, key = recipe.train, "train.optimizer.in_backward"
    if not train.optimizer.in_backward:
        return
    if recipe.model.dtype == "float16":
        message = (
            "a step that overflows in fp16 is left out, but with in_backward its updates are done before that is known"
        )
        yield Clash(message, (key, "model.dtype"), {key: False}, "E371", "or model.dtype=bfloat16")
    if train.clip_norm > 0:
        message = (
            f"gradients are clipped to a norm of {train.clip_norm:g} over all of them, but with in_backward each is "
            "used up before the others exist"
        )
        yield Clash(message, (key, "train.clip_norm"), {"train.clip_norm": 0.0}, effect=f"or {key}=false")
    if train.adaptive_clip is not None:
        message = "the norm of the gradient is not known before its parts are used up, so no limit can follow it"
        clip = "train.adaptive_clip"
        yield Clash(message, (key, f"{clip}.rule"), {clip: None}, "E381", f"or {key}=false")
    if train.stability.on_spike == "skip":
        message = "a step with a spike is left out, but with in_backward its updates are done before that is known"
        spike = "train.stability.on_spike"
        yield Clash(message, (key, spike), {spike: "off"}, effect=f"or {key}=false")


def automatic_warmup(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """The untuned warm-up follows from how long the mean of squares takes to settle."""
    optimizer, key = recipe.train.optimizer, "train.schedule.warmup"
    if recipe.train.schedule.warmup == "auto" and optimizer.settling_steps is None:
        message = f"an automatic warm-up follows from beta2 of a mean of squares, and {optimizer.name} has none"
        yield Clash(message, (key, "train.optimizer.name"), {key: 0.03}, "E382")
