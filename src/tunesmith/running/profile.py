"""Times the steps of a run by part, when the recipe asks for it, and writes the profile however the run ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from tunesmith.models.marks import watched
from tunesmith.planning.floor import matmul_seconds
from tunesmith.planning.inputs import inventory_of, trainable_of
from tunesmith.recipe import Recipe
from tunesmith.running.build import Context
from tunesmith.running.inputs import Inputs
from tunesmith.track.clock import Clock
from tunesmith.track.profile import Profile, write_profile
from tunesmith.train.loop import Loop
from tunesmith.train.work import Rates

WARMUP = 3  # steps of an attempt that are not timed: memory is taken, kernels and caches warm up


@dataclass(slots=True)
class Timed:
    """What the timed steps came to."""

    loop: Loop
    floors: tuple[Rates, Rates]
    clock: Clock
    seen: int = 0
    tokens: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("scored", "seconds", "busy", "floor"), 0.0))

    def after_step(self, values: dict[str, float]) -> None:
        """Start the clock when the warm-up is over; count what was done since."""
        self.seen += 1
        if self.seen == WARMUP:
            self.clock.start()
        if self.seen <= WARMUP:
            return
        seconds = values["perf/step_s"]
        self.tokens += int(values["train/tokens_per_step"])
        self.sums["scored"] += values["train/scored_per_step"]
        self.sums["seconds"] += seconds
        self.sums["busy"] += values["perf/mfu"] * seconds
        self.sums["floor"] += sum(
            rates.total(amount) for rates, amount in zip(self.floors, self.loop.amounts, strict=True)
        )

    def profile(self, attempt: int) -> Profile:
        seconds = self.sums["seconds"]
        return Profile(
            spent=self.clock.spent,
            steps=max(0, self.seen - WARMUP),
            warmup=WARMUP,
            attempt=attempt,
            tokens=self.tokens,
            scored=self.sums["scored"],
            step_seconds=seconds,
            utilisation=self.sums["busy"] / seconds if seconds else 0.0,
            floor_seconds=self.sums["floor"],
            threads=0 if self.clock.wait is not None else torch.get_num_threads(),
        )


@contextmanager
def profiled(recipe: Recipe, inputs: Inputs, loop: Loop, around: Context) -> Iterator[None]:
    """The steps inside `with` are timed with `train.profile`, on the first rank; numbers do not change.

    On a GPU every part waits for the device to finish, so that its time is its own and the steps are slower.
    """
    if not recipe.train.profile or not around.mesh.is_first:
        yield
        return
    around.display.phase("measuring matrix products")
    model, tell = loop.parts.model, loop.parts.on_step
    inventory = inventory_of(recipe, inputs.base, inputs.task.outputs)
    floors = matmul_seconds(model, inventory, trainable_of(recipe, inventory).lowest_layer)
    wait = torch.cuda.synchronize if around.mesh.device().type == "cuda" else None
    timed = Timed(loop, floors, Clock(wait))

    def on_step(step: int, total: int, values: dict[str, float]) -> None:
        timed.after_step(values)
        if tell is not None:
            tell(step, total, values)

    loop.parts.on_step = on_step
    try:
        with watched(model):
            yield
    finally:
        timed.clock.stop()
        attempt = around.run.read_status().attempt
        write_profile(around.run, timed.profile(attempt))
