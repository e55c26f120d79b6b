"""What keeps a run steady, as a plan tells it, and what would keep it from working."""

from __future__ import annotations

from collections.abc import Iterator

from tunesmith.errors import Diagnostic, Fix, Where
from tunesmith.models.inventory import Inventory, Trainable
from tunesmith.planning.counting import Counted
from tunesmith.planning.memory import PLAIN
from tunesmith.recipe import Recipe
from tunesmith.train.config import AdaptiveClipConfig
from tunesmith.train.schedule import settled, warmup_steps

REPEATED = 4  # times that a record of general data may be trained without a word


def told_guards(recipe: Recipe, total: int, counted: Counted) -> dict[str, str]:
    """A line for each guard that the recipe has, under its name."""
    told = {"rate": _rate(recipe, total), "clipping": _clipping(recipe)}
    if recipe.data.general.train:
        told["general"] = _general(recipe, counted)
    if recipe.train.l2_to_start:
        is_new_lora = draws_updates(recipe)
        told["pull"] = f"{recipe.train.l2_to_start:g} to {'no update' if is_new_lora else 'the weights at the start'}"
    if recipe.train.ema is not None:
        told["average"] = f"of the weights, each step keeping {recipe.train.ema.decay:g}; it is what is used"
    return told


def draws_updates(recipe: Recipe) -> bool:
    """Whether a pull to the start is one of the update to 0, which needs no copy of the start."""
    return type(recipe.model.adapter) in PLAIN and recipe.model.adapter_path is None


def copies_bytes(recipe: Recipe, inventory: Inventory, trained: Trainable, width: int, scored: float) -> int:
    """Averages, starts, and weights before a step whose layers are watched, all in fp32.

    Averages that a method keeps, and for whole distributions of a reference its states of a step, and its weights.

    `scored` are the scored tokens of a step, `width` the bytes of a number of the model.
    """
    train = recipe.train
    size = 4 * trained.total * ((train.ema is not None) + (train.watch_layers > 0))
    size += 4 * trained.adapters * recipe.model.adapter.averages
    if train.l2_to_start:
        size += 4 * (trained.base if draws_updates(recipe) else trained.total)
    if recipe.compares_distributions:
        size += round(width * inventory.hidden * scored)
        has_base = recipe.model.adapter.kept == "adapter" and recipe.model.adapter_path is None
        size += 0 if has_base else width * trained.base + 4 * trained.adapters
    return size


def _general(recipe: Recipe, counted: Counted) -> str:
    drawn, pool = general_of(recipe, counted)
    return f"{drawn:,.0f} of the examples of an epoch ({drawn / counted.examples:.0%}), from {pool:,.0f}"


def general_of(recipe: Recipe, counted: Counted) -> tuple[float, float]:
    """Examples of general data in an epoch, and how many different ones there are."""
    own = sum(source.pool * given.weight for source, given in zip(counted.sources, recipe.data.train, strict=False))
    return counted.examples - own, sum(source.pool for source in counted.sources[len(recipe.data.train) :])


def _rate(recipe: Recipe, total: int) -> str:
    schedule = settled(recipe.train)
    warmup, peak = warmup_steps(schedule, total), f"{recipe.train.optimizer.lr:g}"
    if not warmup:
        return f"{peak}, {schedule.name}, no warm-up"
    shape = "" if schedule.warmup_shape == "linear" else f" {schedule.warmup_shape}"
    return f"{peak} after {warmup:,} of {total:,} steps of{shape} warm-up, then {schedule.name}"


def _clipping(recipe: Recipe) -> str:
    limits = [f"a norm of {recipe.train.clip_norm:g}"] if recipe.train.clip_norm else []
    if recipe.train.adaptive_clip is not None:
        limits.append(_adaptive(recipe.train.adaptive_clip))
    return " and ".join(limits) or "none"


def _adaptive(settings: AdaptiveClipConfig) -> str:
    if settings.rule == "zscore":
        return f"{settings.threshold:g} deviations above the running mean norm, from step {settings.warmup + 1} on"
    return f"the norm below which {settings.percentile:g} % of the steps were"


def guard_problems(recipe: Recipe, total: int, counted: Counted, epochs: float) -> Iterator[Diagnostic]:
    yield from _endless_warmup(recipe, total)
    if recipe.data.general.train:
        yield from _repeated(recipe, counted, epochs)


def _repeated(recipe: Recipe, counted: Counted, epochs: float) -> Iterator[Diagnostic]:
    """W381: more of the general data is wanted than there is."""
    drawn, pool = general_of(recipe, counted)
    times, key = drawn * epochs / max(1.0, pool), "data.general.share"
    if times <= REPEATED:
        return
    share = float(f"{recipe.data.general.share * REPEATED / times:.1g}")
    fixes = [Fix("data.general.train=FILE with more records")]
    if share > 0:
        fixes.append(Fix(f"{key}={share:g}", {key: share}))
    message = f"every record of the general data is trained about {times:.0f} times"
    evidence = (f"{drawn * epochs:,.0f} examples are drawn from {pool:,.0f}",)
    yield Diagnostic("W381", message, "warning", Where(field=key), evidence, tuple(fixes))


def _endless_warmup(recipe: Recipe, total: int) -> Iterator[Diagnostic]:
    """W380: an automatic warm-up as long as the run."""
    train, key = recipe.train, "train.schedule.warmup"
    steps = train.optimizer.settling_steps
    if train.schedule.warmup != "auto" or steps is None or steps < total:
        return
    yield Diagnostic(
        "W380",
        f"an automatic warm-up takes {steps:,} steps, and the run has {total:,}: the rate never reaches its peak",
        "warning",
        Where(field=key),
        (f"2 / (1 - beta2) of {train.optimizer.name}",),
        (
            Fix("train.optimizer.beta2=0.95", {"train.optimizer.beta2": 0.95}, effect="40 steps"),
            Fix(f"{key}=0.1", {key: 0.1}, effect="a tenth of the steps"),
        ),
    )
