"""Which evaluation was the best, and when a run has gone on for long enough."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tunesmith.train.config import EarlyStoppingConfig
from tunesmith.train.position import Position


def note(position: Position, found: Mapping[str, float], settings: EarlyStoppingConfig | None) -> bool:
    """Enter an evaluation; returns whether its weights are the best so far.

    Where general data is watched, those are the newest that have not lost too much of it, or of these the ones with the
    lowest evaluation loss when that is measured.
    """
    position.evaluated = position.step
    position.general_loss = found.get("general_loss", position.general_loss)
    if position.general_start is None:
        position.general_start = position.general_loss
    loss = found.get("loss")
    if settings is not None and settings.watch == "general" and (has_forgotten(position, settings) or loss is None):
        is_best = not has_forgotten(position, settings)
    else:
        delta = 0.0 if settings is None else settings.min_delta
        best = math.inf if position.best_loss is None else position.best_loss - delta
        is_best = loss is not None and math.isfinite(loss) and loss < best
    if is_best:
        position.best_loss, position.best_step, position.stale = loss, position.step, 0
    elif loss is not None:
        position.stale += 1
    return is_best


def is_over(position: Position, settings: EarlyStoppingConfig | None) -> bool:
    if settings is None:
        return False
    return has_forgotten(position, settings) if settings.watch == "general" else position.stale >= settings.patience


def has_forgotten(position: Position, settings: EarlyStoppingConfig) -> bool:
    """Whether the loss on general data has risen above its start by more than allowed, or is no number any more."""
    start, last = position.general_start, position.general_loss
    return start is not None and last is not None and not last <= (1 + settings.max_rise) * start
