"""How fast this machine really is: useful FLOP per second of earlier runs, kept under home()."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.models.cache import make_folder
from tunesmith.models.inventory import Inventory, Trainable
from tunesmith.paths import home
from tunesmith.planning.counting import Counted
from tunesmith.planning.machine import Machine
from tunesmith.recipe import Recipe

GUESS_PER_CORE = 60e9  # FLOP/s of one CPU core, before the first run
GUESS_GPU = 100e12  # FLOP/s of a GPU, before the first run
SMOOTH = 0.5  # weight of the newest run
SHORTEST = 5.0  # seconds of training below which a run measures start-up more than speed


@dataclass(frozen=True, slots=True)
class Speed:
    """FLOP per second; `runs` is 0 for a guess."""

    flops: float
    runs: int

    @property
    def is_guess(self) -> bool:
        return self.runs == 0


def calibration_key(machine: Machine, dtype: str) -> str:
    """Speeds are comparable on the same device, type and number of threads."""
    threads = f", {machine.threads} threads" if machine.device == "cpu" else ""
    return f"{machine.name}, {dtype}{threads}"


def known_speed(machine: Machine, dtype: str) -> Speed:
    """The speed that earlier runs showed, or a guess."""
    entry = _read().get(calibration_key(machine, dtype))
    if entry is not None:
        return Speed(entry["flops"], entry["runs"])
    return Speed(GUESS_GPU if machine.device == "cuda" else GUESS_PER_CORE * machine.threads, 0)


def record_speed(key: str, flops: float, seconds: float) -> None:
    """Learn from a finished run: `flops` done in `seconds`; very short runs teach nothing."""
    if seconds < SHORTEST or flops <= 0:
        return
    speeds = _read()
    old = speeds.get(key)
    new = flops / seconds
    if old is not None:
        new = SMOOTH * new + (1 - SMOOTH) * old["flops"]
    speeds[key] = {"flops": new, "runs": 1 + (0 if old is None else old["runs"])}
    make_folder(home())
    descriptor, name = tempfile.mkstemp(prefix=".calibration-", dir=home())
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"schema": 1, "speeds": speeds}, file, indent=1)
    os.replace(name, calibration_file())


def calibration_file() -> Path:
    return home() / "calibration.json"


def _read() -> dict[str, dict[str, Any]]:
    """Speeds by key; a file that cannot be read counts as none."""
    try:
        speeds = json.loads(calibration_file().read_text(encoding="utf-8"))["speeds"]
        return {key: {"flops": float(entry["flops"]), "runs": int(entry["runs"])} for key, entry in speeds.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def flops_per_token(inventory: Inventory, trained: Trainable, scored: float, length: float) -> float:
    """Useful FLOP of one training token; `scored` is the share that the loss reads, `length` the mean document.

    Forward 2N, gradient of the inputs 2N above the lowest trained layer, gradient of what is trained 2n more.
    """
    reached = max(0, inventory.layers - trained.lowest_layer) / inventory.layers
    body, head = inventory.body, scored * inventory.head
    trained_head = inventory.head if trained.head else 0
    own = trained.base - trained.resting - trained_head
    weights = 2 * trained.adapters * 3 + 2 * min(max(0, own), body) + 2 * scored * trained_head
    attention = 2 * length * inventory.query * inventory.layers
    return 2 * body * (1 + reached) + 4 * head + weights + attention * (1 + 2.5 * reached)


def forward_flops(inventory: Inventory, scored: float, length: float) -> float:
    """Useful FLOP of one token in a forward pass without gradient."""
    attention = 2 * length * inventory.query * inventory.layers
    return 2 * inventory.body + 2 * scored * inventory.head + attention


def computed(recipe: Recipe, dtype: str) -> str:
    """What products are formed in, for speeds to be told apart."""
    products, held = recipe.model.base_products, recipe.model.quantization
    words = [dtype, *([] if products == "exact" else [products]), *([] if held.name == "none" else [held.name])]
    if (fp8 := recipe.train.fp8) is not None:
        words.append(f"trained in fp8 {fp8.told()}, from {fp8.smallest}")
    return " and ".join(words)


def flops_kept(recipe: Recipe, inventory: Inventory, trained: Trainable, counted: Counted) -> float:
    """FLOP of one token where every layer keeps what it computed, further forward passes included."""
    scored, length = counted.scored_share, counted.mean_length
    passes = further_passes(recipe, counted.prompt_share)
    return flops_per_token(inventory, trained, scored, length) + passes * forward_flops(inventory, scored, length)


def further_passes(recipe: Recipe, prompt_share: float = 0.0) -> float:
    """Forward passes per token and epoch besides the trained one: the reference, and looks at the whole step.

    Mismatched prompts have a reference of their own, but it computes the prompts, `prompt_share` of all tokens, once.
    """
    ahead = any(objective.looks_ahead for objective in recipe.objectives) + recipe.compares_distributions
    if not recipe.has_reference:
        return float(ahead)
    kept = recipe.model.reference.update_every == 0  # computed once per record, not once per epoch
    again = 1 / max(1.0, recipe.train.epochs) if kept else 1.0
    others = 2 - prompt_share if recipe.task.mismatches else 1
    return again * others + ahead
