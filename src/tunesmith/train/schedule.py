"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math

from tunesmith.train.config import ScheduleConfig, TrainConfig

LOWEST = 1e-5  # share of the peak at which a rising rate begins when no other is given


def settled(train: TrainConfig) -> ScheduleConfig:
    """The schedule with an automatic warm-up as a number of steps."""
    if train.schedule.warmup != "auto":
        return train.schedule
    steps = train.optimizer.settling_steps
    assert steps is not None, "an optimiser without a mean of squares got past the recipe's checks"
    return train.schedule.model_copy(update={"warmup": float(steps)})


def warmup_steps(schedule: ScheduleConfig, total: int) -> int:
    """Below 1 the setting is a share of `total` (rounded up), from 1 on a number of steps."""
    assert schedule.warmup != "auto"
    steps = math.ceil(schedule.warmup * total) if schedule.warmup < 1 else int(schedule.warmup)
    return min(steps, total)


def factor(schedule: ScheduleConfig, step: int, total: int) -> float:
    """Share of the peak rate at `step` (from 0); the first warm-up step runs at peak / warm-up steps, not at 0."""
    warmup = warmup_steps(schedule, total)
    if warmup and schedule.warmup_shape == "exponential":
        return -math.expm1(-2 * (step + 1) / warmup) * shape(schedule, step, warmup, total)
    return (step + 1) / warmup if step < warmup else shape(schedule, step, warmup, total)


def shape(schedule: ScheduleConfig, step: int, warmup: int, total: int) -> float:
    """Share of the peak rate after the warm-up; the whole of it before."""
    progress = max(0, step - warmup) / max(1, total - warmup)
    floor = schedule.min_ratio
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "linear":
        return floor + (1 - floor) * (1 - progress)
    if schedule.name == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule.name == "rising":
        return (floor or LOWEST) ** (1 - step / max(1, total - 1))
    if schedule.name == "wsd":
        start = total - max(1, math.ceil(schedule.decay * total))
        return 1.0 if step < start else floor + (1 - floor) * (total - step) / (total - start)
    return max(floor, math.sqrt(max(1, warmup) / max(warmup, step + 1)))
