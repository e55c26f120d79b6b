"""States of a run on their way into checkpoints and back: at once, or in the background from a copy."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tunesmith.track.clock import phase
from tunesmith.train import random_state
from tunesmith.train.checkpoint import Checkpoint, CheckpointStore
from tunesmith.train.commit import Part, Tensors
from tunesmith.train.parts import Parts


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a resume needs, after `step`; the tensors are those that go on changing."""

    step: int
    tensors: Mapping[str, Tensors]
    state: Mapping[str, Any]
    own: Part
    about: Mapping[str, Any]

    def copied(self) -> Snapshot:
        """The same with tensors of its own."""
        tensors = {stem: cloned(each) for stem, each in self.tensors.items()}
        own = Part(cloned(self.own.tensors), copy.deepcopy(dict(self.own.state)))
        return Snapshot(self.step, tensors, copy.deepcopy(dict(self.state)), own, dict(self.about))


@dataclass(slots=True)
class Saving:
    """One save that was begun: how long it held up the steps, and all it took once it is done."""

    step: int
    best: bool
    held: float = 0.0
    seconds: float = 0.0


@dataclass(slots=True)
class Saver:
    """Commits snapshots; with `apart` in a thread, one at a time, while training goes on.

    What the disk refuses there is raised by the next call. Leave by `close`, which waits.
    """

    store: CheckpointStore
    apart: bool = False
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"))
    flying: tuple[Saving, Future[None]] | None = None

    def save(self, snapshot: Snapshot, *, best: bool) -> list[Saving]:
        """Begin to save, and end what was begun before; what is done."""
        started = time.monotonic()
        done = self.settle()
        saving = Saving(snapshot.step, best)
        if not self.apart:
            self.commit(snapshot, saving, started)
            saving.held = saving.seconds
            return [*done, saving]
        copied = snapshot.copied()
        self.flying = saving, self.thread.submit(self.commit, copied, saving, started)
        saving.held = time.monotonic() - started
        return done

    def commit(self, snapshot: Snapshot, saving: Saving, started: float) -> None:
        self.store.save(
            snapshot.step,
            snapshot.tensors,
            snapshot.state,
            own=snapshot.own,
            best=saving.best,
            about=snapshot.about,
        )
        saving.seconds = time.monotonic() - started

    def landed(self) -> list[Saving]:
        """What was saved in the background since it was last asked for; raises what kept it from being saved."""
        return self.settle() if self.flying is not None and self.flying[1].done() else []

    @phase("checkpoint")
    def settle(self) -> list[Saving]:
        """Wait for what is being saved."""
        if self.flying is None:
            return []
        (saving, future), self.flying = self.flying, None
        future.result()
        return [saving]

    def close(self) -> None:
        """Wait without a word of what went wrong: another error, or `settle`, has told it."""
        self.thread.shutdown(wait=True)


def cloned(tensors: Tensors) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def take(parts: Parts, step: int, state: Mapping[str, Any], tokens: int) -> Snapshot:
    """What the parts hold now, with `state` of the loop; the weights are those to use (see `Optimizer.averaged`)."""
    tensors, generators = random_state.capture()
    held = {
        "source": parts.source.state(),
        "guard": parts.guard.state(),
        **({} if parts.scale is None else {"scale": parts.scale.state()}),
        "total": parts.total,
        "about": parts.about,
    }
    files = {
        "weights": {name: value.detach() for name, value in parts.trained.items()},
        "optimizer": parts.optimizer.state(),
        **({"tuning": own} if (own := parts.tuning.state()) else {}),
        **({"reference": moving} if (moving := parts.streams.state()) else {}),
    }
    about = {"tokens": tokens, "data": parts.source.fingerprint()}
    return Snapshot(step, files, {**state, **held}, Part(tensors, generators), about)


def put_back(parts: Parts, checkpoint: Checkpoint) -> None:
    """Weights, optimiser, reference, guard, loss scale and generators as they were; not the place in the data."""
    parts.optimizer = parts.tuning.before(checkpoint.state["position"]["step"], parts.optimizer)
    weights = checkpoint.tensors("weights")
    for name, parameter in parts.trained.items():
        parameter.data.copy_(weights[name])
    if parts.tuning.state():
        parts.tuning.restore(checkpoint.tensors("tuning"))
    parts.optimizer.restore(checkpoint.stored("optimizer"))
    if parts.streams.state():
        parts.streams.restore(checkpoint.tensors("reference"))
    parts.guard.restore(checkpoint.state["guard"])
    if parts.scale is not None:
        parts.scale.restore(checkpoint.state["scale"])
    own = checkpoint.part(parts.mesh.rank)
    if own is not None:
        random_state.restore(dict(own.tensors), dict(own.state))
    else:  # fewer ranks saved it
        random_state.seed_everything(seed_of(parts.settings.seed, parts.mesh.rank, checkpoint.step))


def seed_of(seed: int, rank: int, step: int) -> int:
    """A seed for a rank that begins at a step, unlike those of other ranks and steps."""
    return int(np.random.SeedSequence((seed, rank, step)).generate_state(1)[0])


Told = Callable[[str, dict[str, Any]], None]


def tell(done: list[Saving], told: Told, *, apart: bool) -> None:
    """An event for every save that is done; `held` is how long steps waited for one in the background."""
    for each in done:
        held = {"held": each.held} if apart else {}
        told("checkpoint", {"step": each.step, "seconds": each.seconds, "best": each.best, **held})


def folder_of(store: CheckpointStore, step: int) -> Path:
    return store.folder / f"step-{step}"
