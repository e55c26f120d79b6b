"""The plan: what a recipe will do on this machine, worked out before a weight is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from tunesmith.data.balance import Sizes, share_out
from tunesmith.data.branches import apart
from tunesmith.data.mismatch import spread
from tunesmith.data.savings import saved_share
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.errors import Diagnostic, DoesNotFit
from tunesmith.models.cache import Progress
from tunesmith.models.inventory import Inventory, Trainable
from tunesmith.models.policy import Checkpointing, everywhere
from tunesmith.models.processor import computing_type
from tunesmith.models.products import check_machine
from tunesmith.models.prompt_config import positions_before, rows_added
from tunesmith.planning.calibration import (
    Speed,
    calibration_key,
    computed,
    flops_kept,
    known_speed,
    record_speed,
)
from tunesmith.planning.counting import Counted, count_data
from tunesmith.planning.guards import copies_bytes, told_guards
from tunesmith.planning.inputs import find_inputs, inventory_of, trainable_of
from tunesmith.planning.machine import Machine, this_machine
from tunesmith.planning.memory import (
    USABLE,
    WIDTH,
    Load,
    Memory,
    activation_sizes,
    compute_type,
    estimate,
)
from tunesmith.planning.policies import choose, costs_of, cut, possible, smallest
from tunesmith.planning.precision import told_precision
from tunesmith.planning.problems import Facts, find_problems, peak_off
from tunesmith.planning.reference import find_reference
from tunesmith.planning.safety import snapshot_bytes
from tunesmith.planning.sharing import shares_prefixes
from tunesmith.planning.trunk import TrunkPlan, plan_trunk
from tunesmith.recipe import Recipe
from tunesmith.recipe.task import resolve_task

SIMULATED = 200  # steps drawn, at most, to find the largest microbatch


@dataclass(frozen=True, slots=True)
class Steps:
    """How the data becomes optimiser steps; `largest` is the biggest microbatch in tokens, `longest` its document.

    `microbatches` is the usual number of a step, `most` that of the step with the most.
    """

    total: int
    per_epoch: int
    sequences: float
    tokens: float
    microbatches: int
    most: int
    largest: int
    longest: int
    all_tokens: float
    mean_length: float
    saved: float = 0.0  # share of the tokens that examples of a microbatch begin with alike, computed once


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe resolved on a machine. `free` and memory are bytes; `seconds` is of the steps alone."""

    recipe: Recipe
    machine: Machine
    inventory: Inventory
    trained: Trainable
    counted: Counted
    steps: Steps
    dtype: str
    memory: Memory
    checkpointing: Checkpointing
    again: float  # FLOP of one token in layers that are computed again
    flops: float  # of one token, `again` included
    speed: Speed  # of one rank
    ranks: int
    problems: tuple[Diagnostic, ...]
    trunk: TrunkPlan | None = None

    @property
    def seconds(self) -> float:
        return self.steps.all_tokens * (1 - self.steps.saved) * self.flops / (self.speed.flops * self.ranks)

    @property
    def seconds_again(self) -> float:
        """What checkpointing costs of them."""
        return self.seconds * self.again / self.flops

    @property
    def trunk_seconds(self) -> float:
        """Time before the first step in which frozen layers are computed, when no earlier run has done so."""
        if self.trunk is None:
            return 0.0
        ranks = self.ranks if self.trunk.where == "disk" else 1  # memory is not shared: every rank computes everything
        return self.trunk.tokens * self.trunk.flops / (self.speed.flops * ranks)

    @property
    def trunk_saving(self) -> float:
        """Time that the steps would take longer if nothing were cached."""
        flops = 0.0 if self.trunk is None else self.trunk.flops
        return self.steps.all_tokens * (1 - self.steps.saved) * flops / (self.speed.flops * self.ranks)

    @property
    def precision(self) -> str:
        """What types there are, and what they mean for range, precision and memory, in a line."""
        return told_precision(self.recipe, self.inventory, self.trained, self.dtype)

    @property
    def fits(self) -> bool:
        return fits(self.memory, self.machine)

    def check(self, *, force: bool = False) -> None:
        """Raise DoesNotFit (exit code 3) with its fixes when the run does not fit, unless forced."""
        errors = [problem for problem in self.problems if problem.level == "error"]
        if errors and not force:
            error = DoesNotFit(errors[0].code, errors[0].message, others=errors[1:])
            error.diagnostic = errors[0]
            error.args = (str(errors[0]),)
            raise error

    def to_json(self) -> dict[str, Any]:
        """The stable form: `tunesmith plan --json`, and `plan.json` of a run."""
        steps, counted = self.steps, self.counted
        return {
            "parameters": {"total": self.inventory.total + self.trained.adapters, "trainable": self.trained.total},
            "merged_adapters": list(self.recipe.model.merged_adapters),
            "tokens_per_step": round(steps.tokens),
            "steps": steps.total,
            "memory": self.memory.to_json(),
            "seconds": float(f"{self.seconds:.4g}"),
            "guess": self.speed.is_guess,
            "problems": [problem.to_json() for problem in self.problems],
            "fits": self.fits,
            "free_bytes": self.machine.memory_free,
            "checkpointing": {**self.checkpointing.to_json(), "seconds": float(f"{self.seconds_again:.4g}")},
            "trunk": None
            if self.trunk is None
            else {
                **self.trunk.to_json(),
                "seconds": float(f"{self.trunk_seconds:.4g}"),
                "saved_seconds": float(f"{self.trunk_saving:.4g}"),
            },
            "arithmetic": list(self.arithmetic()),
            "guards": told_guards(self.recipe, steps.total, counted),
            "data": {
                "records": counted.records,
                "examples_per_epoch": round(counted.examples),
                "mean_length": round(counted.mean_length, 1),
                "scored_share": round(counted.scored_share, 4),
                "looked_at": counted.looked_at,
                "saved_share": round(steps.saved, 4),
            },
            "device": {"kind": self.machine.device, "name": self.machine.name, "threads": self.machine.threads},
            "dtype": self.dtype,
            "precision": self.precision,
            "microbatch": {"largest_tokens": steps.largest, "per_step": steps.microbatches},
            "calibration": {
                "key": calibration_key(self.machine, computed(self.recipe, self.dtype)),
                "flops_per_token": round(self.flops),
                "flops_per_second": round(self.speed.flops),
            },
        }

    def arithmetic(self) -> tuple[str, str]:
        """How a step and the number of steps come about, in words and numbers."""
        steps, train = self.steps, self.recipe.train
        mean = self.counted.mean_length
        if train.tokens_per_step is None:
            step = f"{round(steps.sequences):,} sequences × ~{mean:,.0f} tokens = {steps.tokens:,.0f} tokens per step"
        else:
            step = f"at most {train.tokens_per_step:,} tokens: ~{steps.sequences:.0f} sequences × ~{mean:,.0f} tokens"
        per_epoch = (
            f"{self.counted.examples:,.0f} examples / {steps.sequences:.0f} = {steps.per_epoch:,} steps per epoch"
        )
        if train.steps is not None:
            return step, f"{train.steps:,} steps = {train.steps / steps.per_epoch:.2f} epochs ({per_epoch})"
        return step, f"{per_epoch} × {train.epochs:g} = {steps.total:,} steps"


def make_plan(
    recipe: Recipe,
    *,
    machine: Machine | None = None,
    counted: Counted | None = None,
    ranks: int = 1,
    file: str = "RECIPE",
    progress: Progress | None = None,
) -> Plan:
    """Resolve a recipe on this machine from config.json, safetensors headers and the data; no weight is loaded.

    `ranks` processes share a CPU's memory; `file` is the recipe's name in proposed commands. Memory and microbatches
    are those of one rank. Raises what locating the model and reading the data raise.
    """
    machine = machine or this_machine(recipe.train.threads)
    if machine.device == "cpu":
        machine = replace(machine, memory_free=machine.memory_free // ranks)
    check_machine(recipe.model.base_products, machine.device, recipe.train.fp8)
    folder = find_inputs(recipe, progress)
    task = resolve_task(recipe)
    inventory = inventory_of(recipe, folder, task.outputs)
    recipe = recipe.sized(inventory.body, machine.device)
    tokenizer = load_tokenizer(folder, recipe.model.new_tokens)
    find_reference(recipe, tokenizer)
    counted = counted or count_data(recipe.data, tokenizer, task)
    trained = trainable_of(recipe, inventory)
    share = shares_prefixes(recipe, folder)
    steps = count_steps(recipe, counted, ranks, machine.device, share=share)
    dtype = planned_type(recipe, inventory, machine)
    trunk = plan_trunk(recipe, inventory, counted, dtype)
    memory, checkpointing = plan_memory(recipe, inventory, counted, steps, machine)
    again = costs_of(inventory, counted.mean_length).of(checkpointing)
    numbers = steps.total, steps.sequences, steps.most, steps.longest
    facts = Facts(recipe, inventory, counted, *numbers, memory, machine, ranks, file, dtype, trunk)
    peak_of = partial(_peak_of, inventory=inventory, counted=counted, machine=machine, ranks=ranks, share=share)
    return Plan(
        recipe=recipe,
        machine=machine,
        inventory=inventory,
        trained=trained,
        counted=counted,
        steps=steps,
        dtype=dtype,
        memory=memory,
        checkpointing=checkpointing,
        again=again,
        flops=again + flops_kept(recipe, inventory, trained, counted) - (0.0 if trunk is None else trunk.flops),
        speed=known_speed(machine, computed(recipe, dtype)),
        ranks=ranks,
        problems=find_problems(facts, peak_of),
        trunk=trunk,
    )


def fits(memory: Memory, machine: Machine) -> bool:
    return memory.peak <= USABLE * machine.memory_free


def planned_type(recipe: Recipe, inventory: Inventory, machine: Machine) -> str:
    """The type of the weights: as asked for, or with `auto` the stored one where this machine multiplies it fast."""
    stored = compute_type(inventory, recipe.model.dtype)
    if recipe.model.dtype != "auto" or stored == "float32":
        return stored
    return "bfloat16" if computing_type(torch.bfloat16, machine.device) == torch.bfloat16 else "float32"


def plan_memory(
    recipe: Recipe, inventory: Inventory, counted: Counted, steps: Steps, machine: Machine
) -> tuple[Memory, Checkpointing]:
    """Peak memory, and what is formed again: as asked, or with `auto` what is cheapest in time and fits."""
    adapter, trained = recipe.model.adapter, trainable_of(recipe, inventory)
    dtype = planned_type(recipe, inventory, machine)
    optimizer, is_dense = recipe.train.optimizer, recipe.model.attention == "dense"
    at_once = optimizer.in_backward and steps.most == 1
    rows, longest = steps.largest + rows_added(adapter), steps.longest + positions_before(adapter)
    held = recipe.model.quantization
    load = Load(rows, longest, dtype, machine.device, is_dense, at_once, optimizer, held, recipe.train.fp8)
    trunk = plan_trunk(recipe, inventory, counted, dtype) if recipe.train.cache_trunk == "memory" else None
    kept = 0 if trunk is None or machine.device != "cpu" else trunk.bytes
    width = WIDTH.get(dtype, 2)
    copies = copies_bytes(recipe, inventory, trained, width, steps.tokens * counted.scored_share)
    copies += snapshot_bytes(recipe, inventory, trained, width, machine.device)
    sizes = activation_sizes(inventory, trained, adapter, load)
    wanted = recipe.train.activation_checkpointing
    if wanted != "auto":
        chosen = cut(everywhere(wanted), sizes.layers)
    else:
        others = estimate(inventory, trained, adapter, load)
        room = USABLE * machine.memory_free - (others.peak - others.activations) - kept - copies
        allowed = possible(inventory, machine.device)
        found = choose(sizes, load.tokens, room, costs_of(inventory, steps.mean_length), allowed)
        chosen = smallest(sizes, load.tokens, allowed) if found is None else found
    return replace(estimate(inventory, trained, adapter, load, chosen), trunk=kept, copies=copies), chosen


def _peak_of(
    recipe: Recipe, *, inventory: Inventory, counted: Counted, machine: Machine, ranks: int, share: bool
) -> int:
    """Peak of a changed recipe, to see whether a fix is one."""
    steps = count_steps(recipe, counted, ranks, machine.device, share=share)
    memory, _ = plan_memory(recipe, inventory, counted, steps, machine)
    return memory.peak


def count_steps(recipe: Recipe, counted: Counted, ranks: int = 1, device: str = "cpu", *, share: bool = False) -> Steps:
    """Steps of an epoch and of the run, and the microbatches of a rank that drawing some of them shows."""
    train = recipe.train
    chance = np.random.default_rng(train.seed)
    drawn = _draw_steps(recipe, counted, chance)
    sequences = float(np.mean([len(step) for step in drawn]))
    if train.tokens_per_step is None and train.sequences_per_step is not None:
        sequences = float(min(train.sequences_per_step, math.ceil(counted.examples)))
    per_epoch = max(1, math.ceil(counted.examples / sequences) - _folded(recipe, counted))
    whole, part = int(train.epochs), train.epochs - int(train.epochs)
    total = train.steps or max(1, whole * per_epoch + math.ceil(part * per_epoch))
    epochs = train.steps / per_epoch if train.steps else train.epochs
    limit = train.microbatch_limit(device)
    saved = saved_share(counted.seen, round(sequences), limit, ranks) if share else 0.0
    packed, sums = [], []
    for step in drawn[:total]:
        own = [max(1, round(room * (1 - saved))) for room in step[:, 1].tolist()]
        hands = share_out(apart(len(own)), Sizes(own, [length**2 for length in own]), limit, ranks)
        packed += [len(hand) for hand in hands]
        sums += [sum(own[place] for place in group) for hand in hands for group in hand]
    return Steps(
        total=total,
        per_epoch=per_epoch,
        sequences=sequences,
        tokens=sequences * counted.mean_length,
        microbatches=round(float(np.median(packed))),
        most=max(packed),
        largest=max(sums),
        longest=max(int(step[:, 1].max()) for step in drawn),
        all_tokens=epochs * counted.examples * counted.mean_length,
        mean_length=counted.mean_length,
        saved=saved,
    )


def _folded(recipe: Recipe, counted: Counted) -> bool:
    """Whether the last step of an epoch of feedback belongs to the one before, as the loader decides it."""
    size, total = recipe.train.sequences_per_step, round(counted.examples)
    if recipe.task.kind != "feedback" or recipe.train.tokens_per_step is not None or size is None or total <= size:
        return False
    rest = total % size
    if rest < 2 or not recipe.data.shuffle:
        return rest == 1
    labels = np.arange(total) < round(counted.labels.get("good", 0.0))
    last = labels[spread(np.arange(total), labels)[-rest:]]
    return bool((last == last[0]).all())


def _draw_steps(recipe: Recipe, counted: Counted, chance: np.random.Generator) -> list[Int[np.ndarray, "E 2"]]:
    """The examples of some steps as the loader would form them, as Counted.draw tells them: length and room.

    None is longer than data.max_length.
    """
    train, longest = recipe.train, recipe.data.max_length
    if train.tokens_per_step is None:
        size = min(train.sequences_per_step or 1, math.ceil(counted.examples))
        return [np.minimum(counted.draw(size, chance), longest) for _ in range(SIMULATED)]
    drawn = np.minimum(counted.draw(20_000, chance), longest)
    starts, held = [0], 0
    for index, length in enumerate(drawn[:, 0].tolist()):
        if index > starts[-1] and held + length > train.tokens_per_step:
            starts.append(index)
            held = 0
        held += length
        if len(starts) > SIMULATED:
            break
    return np.split(drawn, starts[1:])[:SIMULATED]


def record_actual(plan: Plan, actual: Mapping[str, Any]) -> tuple[Diagnostic, ...]:
    """Learn this machine's speed from a finished run, and tell when its peak memory was far from the plan.

    `actual` holds `tokens`, `saved_tokens`, `seconds` and `peak_memory_bytes`.
    """
    work = (actual["tokens"] - actual.get("saved_tokens", 0)) * plan.flops / plan.ranks
    record_speed(calibration_key(plan.machine, computed(plan.recipe, plan.dtype)), work, actual["seconds"])
    return peak_off(plan.memory, actual["peak_memory_bytes"])
