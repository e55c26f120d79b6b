"""What the loop drives, and how long a step took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import Diagnostic
from tunesmith.objectives import Objective
from tunesmith.track.tracker import Tracking
from tunesmith.train.checkpoint import CheckpointStore
from tunesmith.train.config import TrainConfig
from tunesmith.train.loss_scale import LossScale
from tunesmith.train.optimizer import Optimizer
from tunesmith.train.position import Known
from tunesmith.train.pull import Pull
from tunesmith.train.signals import Poll
from tunesmith.train.stability import Guard
from tunesmith.train.streams import Streams
from tunesmith.train.tuning import Tuning
from tunesmith.train.work import Work
from tunesmith.types import BatchSource


@dataclass(slots=True)
class Parts:
    """Everything the loop drives; built once by the run."""

    model: nn.Module
    objectives: tuple[Objective, ...]
    source: BatchSource
    streams: Streams
    tuning: Tuning
    trained: dict[str, nn.Parameter]  # all that the run may train, of which the optimizer has those of this step
    optimizer: Optimizer
    guard: Guard
    store: CheckpointStore
    tracker: Tracking
    mesh: Mesh
    settings: TrainConfig
    total: int
    work: Work
    scale: LossScale | None = None  # of the loss, in fp16
    # between their batches all three ask whether to break off
    evaluate: Callable[[dict[str, float], Poll], dict[str, float]] | None = None  # "loss" and metrics of held-out data
    measure_general: Callable[[Poll], float] | None = None  # the loss on held-out data of what must not be forgotten
    show_samples: Callable[[int, Poll], None] | None = None
    on_step: Callable[[int, int, dict[str, float]], None] | None = None
    warn: Callable[[Diagnostic], object] = str  # told of what the user should know
    pull: Pull | None = None
    about: dict[str, Any] = field(default_factory=dict)  # goes into every checkpoint and must match on resume
    known: Known = field(default_factory=Known)  # what a checkpoint that lacks some of it is compared with


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of a step and of its wait for data, and the share of the machine's peak that its model FLOP used."""

    took: float
    waited: float
    utilisation: float
