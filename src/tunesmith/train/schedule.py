"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math

from tunesmith.train.config import ScheduleConfig

LOWEST = 1e-5  # share of the peak at which a rising rate begins when no other is given


def warmup_steps(schedule: ScheduleConfig, total: int) -> int:
    """Below 1 the setting is a share of `total` (rounded up), from 1 on a number of steps."""
    steps = math.ceil(schedule.warmup * total) if schedule.warmup < 1 else int(schedule.warmup)
    return min(steps, total)


def factor(schedule: ScheduleConfig, step: int, total: int) -> float:
    """Share of the peak rate at `step` (from 0); the first warm-up step runs at peak / warm-up steps, not at 0."""
    warmup = warmup_steps(schedule, total)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
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
    return max(floor, math.sqrt(max(1, warmup) / (step + 1)))
