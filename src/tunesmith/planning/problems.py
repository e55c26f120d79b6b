"""What a plan finds wrong or doubtful, each with the settings that would mend it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.configuring.catalogue import plain
from tunesmith.errors import Diagnostic, Fix, Where
from tunesmith.models.adalora_config import AdaloraConfig
from tunesmith.models.inventory import Inventory, trainable
from tunesmith.models.prompt_config import positions_before
from tunesmith.planning.adapters import adapter_problems
from tunesmith.planning.counting import Counted
from tunesmith.planning.fp8 import fp8_problems
from tunesmith.planning.fresh import fresh_problems
from tunesmith.planning.guards import guard_problems
from tunesmith.planning.inputs import trainable_of
from tunesmith.planning.judged import label_problems, rating_problems
from tunesmith.planning.machine import Machine
from tunesmith.planning.memory import USABLE, Memory
from tunesmith.planning.optimizers import optimizer_problems
from tunesmith.planning.paging import can_page, paging_problems
from tunesmith.planning.policies import possible
from tunesmith.planning.precision import precision_problems, product_problems
from tunesmith.planning.quantized import quantization_problems
from tunesmith.planning.safety import safety_problems
from tunesmith.planning.trunk import TrunkPlan, existing, trunk_problems
from tunesmith.recipe import Recipe
from tunesmith.recipe.adalora_checks import without_room

FEW_STEPS = 20
ENOUGH_STEPS = 60
OVERLONG = 0.01  # share of records from which it is worth a word
SMALLEST_LENGTH = 128
WHOLE = ("peak", "paged")  # no part of the peak
TOLERANCE = 0.15  # of the measured peak around the planned one


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules look at; `file` is the recipe's name in proposed commands."""

    recipe: Recipe
    inventory: Inventory
    counted: Counted
    steps: int
    sequences: float  # of a step
    microbatches: int  # of the step with the most
    longest: int
    memory: Memory
    machine: Machine
    ranks: int
    file: str
    dtype: str  # of weights and products
    trunk: TrunkPlan | None = None

    @property
    def epochs(self) -> float:
        train = self.recipe.train
        return train.epochs if train.steps is None else self.steps * self.sequences / self.counted.examples


def find_problems(facts: Facts, peak_of: Callable[[Recipe], int]) -> tuple[Diagnostic, ...]:
    """Errors first; `peak_of` tells the peak memory of a changed recipe."""
    rules = (
        _trunk, _policy, _in_backward, _optimizer, _precision, _length, _few_steps, _rate, _overlong, _threads, _disk,
        _stripped, _judged, _guards, _phases, _fresh,
    )  # fmt: skip
    about = facts.recipe, facts.inventory
    first = (*facts.counted.doubts, *adapter_problems(*about), *quantization_problems(*about), *_memory(facts, peak_of))
    return (*first, *(problem for rule in rules for problem in rule(facts)))


def _memory(facts: Facts, peak_of: Callable[[Recipe], int]) -> Iterator[Diagnostic]:
    peak, free = facts.memory.peak, facts.machine.memory_free
    if peak <= USABLE * free:
        return
    largest = sorted(((size, name) for name, size in facts.memory.to_json().items() if name not in WHOLE), reverse=True)
    smaller = _smaller(facts.recipe, facts.machine.device)
    fixes = [fix for changes in smaller if (fix := _tried(facts, changes, peak_of)) is not None]
    if not fixes:
        fixes = [Fix("use a smaller model, or a machine with more memory")]
    yield Diagnostic(
        "E180",
        f"the run would need {gigabytes(peak)}, and {gigabytes(free)} are free ({USABLE:.0%} of it may be used)",
        where=Where(field="train.microbatch_tokens"),
        evidence=(", ".join(f"{name} {gigabytes(size)}" for size, name in largest[:4]),),
        fixes=tuple(fixes[:3]),
    )


def _smaller(recipe: Recipe, device: str) -> Iterator[dict[str, Any]]:
    """Ways to need less, the least painful first."""
    train, data = recipe.train, recipe.data
    if train.cache_trunk == "memory":
        yield {"train.cache_trunk": "disk"}
    if train.activation_checkpointing != "auto":
        yield {"train.activation_checkpointing": "auto"}
    size = train.microbatch_limit(device) // 2
    while size >= SMALLEST_LENGTH:
        yield {"train.microbatch_tokens": size}
        size //= 2
    if train.optimizer.name == "adamw":
        yield {"train.optimizer.name": "adamw8bit"}
    if train.optimizer.paging == "off" and can_page(recipe, device):
        yield {"train.optimizer.paging": "auto"}
    if recipe.model.adapter.kept == "model" and recipe.model.dtype != "float32":
        yield from _without_masters(recipe)
    if recipe.model.fresh is not None:
        pass
    elif recipe.model.adapter.kept == "model":
        is_adamw = train.optimizer.name == "adamw"
        yield {"model.adapter": "lora", **({"train.optimizer.lr": 2e-4} if is_adamw else {"train.optimizer": "adamw"})}
    elif recipe.model.quantization.name == "none" and recipe.model.base_products == "exact":
        yield {"model.quantization": "nf4"}
    if recipe.model.dtype == "float32":
        yield {"model.dtype": "bfloat16"}
    length = data.max_length // 2
    while length >= SMALLEST_LENGTH:
        yield {"data.max_length": length, "train.microbatch_tokens": min(length, train.microbatch_limit(device))}
        length //= 2


def _without_masters(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """In bf16 with a number in bf16 beside each weight, then with states in 8 bits and no number beside it."""
    key = "train.optimizer.rounding"
    small = {"train.optimizer.name": "adamw8bit"} if recipe.train.optimizer.name == "adamw" else {}
    for rounding in ("kahan", "stochastic"):
        if recipe.train.optimizer.rounding == "masters":
            yield {key: rounding, **(small if rounding == "stochastic" else {})}


def _tried(facts: Facts, changes: dict[str, Any], peak_of: Callable[[Recipe], int]) -> Fix | None:
    """The change as a fix with its effect, when with it the run fits."""
    peak = peak_of(changed(facts.recipe, changes))
    if peak > USABLE * facts.machine.memory_free:
        return None
    words = " ".join(f"{key}={plain(value)}" for key, value in changes.items())
    effect = f"needs {gigabytes(peak)}"
    return Fix(words, changes, f"tunesmith train {facts.file} {words}", effect)


def changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with dotted keys set."""
    tree = recipe.model_dump(mode="json")
    for key, value in changes.items():
        *groups, last = key.split(".")
        place = tree
        for group in groups:
            place = place[group]
        place[last] = value
    return Recipe.model_validate(tree)


def _policy(facts: Facts) -> Iterator[Diagnostic]:
    wanted, device = facts.recipe.train.activation_checkpointing, facts.machine.device
    if wanted == "auto" or wanted in possible(facts.inventory, device):
        return
    reasons = {
        "offloaded": f"on a {device.upper()} activations are in host memory already, there is nowhere to offload them",
        "selective": "selective checkpointing forms the MLP of a layer again, and the layers of this model have none",
    }
    key = "train.activation_checkpointing"
    fixes = (Fix(f"{key}=full", {key: "full"}), Fix(f"{key}=auto", {key: "auto"}, effect="what is cheapest and fits"))
    yield Diagnostic("E188", reasons[wanted], where=Where(field=key), fixes=fixes)


def _in_backward(facts: Facts) -> Iterator[Diagnostic]:
    """What keeps an optimiser step in the backward pass from being possible, or from saving anything."""
    train, key = facts.recipe.train, "train.optimizer.in_backward"
    off = Fix(f"{key}=false", {key: False})
    if not train.optimizer.in_backward:
        return
    if facts.ranks > 1:
        message = f"{facts.ranks} processes add up their gradients after the backward pass: none can be used up inside"
        yield Diagnostic("E189", message, where=Where(field=key), fixes=(off, Fix("start one process")))
    elif facts.microbatches > 1:
        message = (
            f"steps of up to {facts.microbatches} forward passes hold every gradient until the last: nothing is saved"
        )
        size = math.floor(facts.sequences / facts.microbatches)
        smaller = {"train.sequences_per_step": max(1, size), "train.tokens_per_step": None}
        one = Fix(f"train.sequences_per_step={max(1, size)}", smaller, effect="about one forward pass per step")
        yield Diagnostic("W188", message, "warning", Where(field=key), fixes=(one, off))


def _optimizer(facts: Facts) -> Iterator[Diagnostic]:
    trained = trainable_of(facts.recipe, facts.inventory)
    yield from optimizer_problems(facts.recipe, trained)
    yield from paging_problems(facts.recipe, trained, facts.machine.device, facts.ranks * facts.memory.paged)


def _precision(facts: Facts) -> Iterator[Diagnostic]:
    trained = trainable_of(facts.recipe, facts.inventory)
    yield from precision_problems(facts.recipe, facts.inventory, trained, facts.dtype)
    yield from product_problems(facts.recipe, facts.dtype, facts.machine.device)
    yield from fp8_problems(facts.recipe, facts.inventory, trained, facts.dtype, facts.machine.device)


def _trunk(facts: Facts) -> Iterator[Diagnostic]:
    yield from trunk_problems(facts.recipe, facts.inventory, facts.trunk, facts.epochs, facts.machine)


def _length(facts: Facts) -> Iterator[Diagnostic]:
    taken = positions_before(facts.recipe.model.adapter)
    limit, wanted = facts.inventory.max_positions - taken, min(facts.longest, facts.recipe.data.max_length)
    if limit > 0 and wanted > limit:
        yield Diagnostic(
            "W182",
            f"examples of up to {wanted:,} tokens, but the model was made for {limit:,} positions"
            + (f" beside {taken} learned ones" if taken else ""),
            "warning",
            Where(field="data.max_length"),
            fixes=(Fix(f"data.max_length={limit}", {"data.max_length": limit}),),
        )


def _few_steps(facts: Facts) -> Iterator[Diagnostic]:
    train = facts.recipe.train
    if facts.steps >= FEW_STEPS or train.steps is not None:
        return
    epochs = math.ceil(train.epochs * ENOUGH_STEPS / facts.steps)
    fixes = [Fix(f"train.epochs={epochs}", {"train.epochs": epochs}, effect=f"about {ENOUGH_STEPS} steps")]
    if train.sequences_per_step is not None and train.sequences_per_step >= 8 and train.tokens_per_step is None:
        smaller = max(2, train.sequences_per_step // 4)
        fixes.append(Fix(f"train.sequences_per_step={smaller}", {"train.sequences_per_step": smaller}))
    yield Diagnostic(
        "W181",
        f"only {facts.steps} steps: the model will hardly change",
        "warning",
        Where(field="train.epochs"),
        (f"{facts.counted.examples:,.0f} examples per epoch",),
        tuple(fixes),
    )


def _rate(facts: Facts) -> Iterator[Diagnostic]:
    optimizer, model = facts.recipe.train.optimizer, facts.recipe.model
    rate, scale = optimizer.lr, optimizer.rate_scale
    if scale is None:
        return
    about, tuned = model.fresh or model.adapter, "a new model" if model.fresh else model.adapter.word
    (low, high), (usual, proposed) = about.rates, about.usual_rate
    low, proposed = low * scale, proposed * scale
    if low <= rate <= high * scale:
        return
    word = "low: the model will hardly change" if rate < low else "high: the loss may diverge"
    yield Diagnostic(
        "W183",
        f"a learning rate of {rate:g} is {word}",
        "warning",
        Where(field="train.optimizer.lr"),
        (f"usual for {tuned}: {usual}" + (f", times {scale:g} for {optimizer.name}" if scale != 1 else ""),),
        (Fix(f"train.optimizer.lr={proposed:g}", {"train.optimizer.lr": proposed}),),
    )


def _overlong(facts: Facts) -> Iterator[Diagnostic]:
    share, data = facts.counted.overlong, facts.recipe.data
    if share < OVERLONG or data.overlong == "split":
        return
    fates = {"drop": "will be dropped", "cut_turns": "will lose turns", "error": "will stop the run"}
    longer = 2 * data.max_length
    fixes = [Fix(f"data.max_length={longer}", {"data.max_length": longer}, effect="needs more memory")]
    if data.overlong == "drop":
        fixes.append(Fix("data.overlong=cut_turns", {"data.overlong": "cut_turns"}))
    yield Diagnostic(
        "W184",
        f"{share:.0%} of the records are longer than {data.max_length:,} tokens and {fates[data.overlong]}",
        "warning",
        Where(field="data.max_length"),
        (f"seen in {facts.counted.looked_at or facts.counted.records:,} records",),
        tuple(fixes),
    )


def _threads(facts: Facts) -> Iterator[Diagnostic]:
    machine = facts.machine
    if machine.device == "cpu" and machine.threads > machine.cores:
        yield Diagnostic(
            "W185",
            f"{machine.threads} threads on {machine.cores} cores: they will wait for each other",
            "warning",
            Where(field="train.threads"),
            fixes=(Fix(f"train.threads={machine.cores}", {"train.threads": machine.cores}),),
        )


def _disk(facts: Facts) -> Iterator[Diagnostic]:
    settings, recipe = facts.recipe.train.checkpoint, facts.recipe
    count = trainable(facts.inventory, recipe.model.adapter).total
    need = 16 * count * (settings.keep + 1)  # weights, master and two moments; one more while it is written
    need += 0 if recipe.train.optimizer.paging_folder else facts.ranks * facts.memory.paged
    folder = existing(Path(recipe.run.folder).expanduser().resolve())
    free = shutil.disk_usage(folder).free
    if need > free:
        yield Diagnostic(
            "W186",
            f"checkpoints may take {gigabytes(need)}, and {gigabytes(free)} are free at {folder}",
            "warning",
            Where(field="run.folder"),
            fixes=(Fix("run.folder=FOLDER on a larger disk"),),
        )


def _guards(facts: Facts) -> Iterator[Diagnostic]:
    yield from safety_problems(facts.recipe, facts.ranks)
    yield from guard_problems(facts.recipe, facts.steps, facts.counted, facts.epochs)


def _phases(facts: Facts) -> Iterator[Diagnostic]:
    adapter = facts.recipe.model.adapter
    problem = without_room(adapter, facts.steps) if isinstance(adapter, AdaloraConfig) else None
    if problem is not None:
        yield problem


def _fresh(facts: Facts) -> Iterator[Diagnostic]:
    yield from fresh_problems(facts.recipe, facts.inventory, facts.counted)


def _judged(facts: Facts) -> Iterator[Diagnostic]:
    """Of records as they are; a loop that samples its own is judged by what it makes of them."""
    counted = facts.counted
    if facts.recipe.online is not None:
        return
    yield from label_problems(facts.recipe, counted.labels, facts.sequences, counted.mean_length)
    if facts.recipe.task.kind == "pair":
        whole = counted.looked_at is None
        yield from rating_problems(facts.recipe, counted.rated_share, counted.examples, whole=whole)


def _stripped(facts: Facts) -> Iterator[Diagnostic]:
    if facts.inventory.stripped:
        yield Diagnostic(
            "W080",
            f"{len(facts.inventory.stripped)} keys of the model's config.json that could load code are left out",
            "warning",
            Where(str(facts.inventory.folder / "config.json")),
            (", ".join(facts.inventory.stripped[:10]),),
        )


def peak_off(planned: Memory, peak: int) -> tuple[Diagnostic, ...]:
    """W187 when the measured peak is more than TOLERANCE off the plan."""
    off = peak / planned.peak - 1
    if abs(off) <= TOLERANCE:
        return ()
    message = f"the run took {gigabytes(peak)} at its peak, {abs(off):.0%} {'more' if off > 0 else 'less'} than planned"
    return (Diagnostic("W187", message, "warning", evidence=(f"planned {gigabytes(planned.peak)}",)),)


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
