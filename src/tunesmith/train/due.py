"""What is due after a step, and what of it a stop has left undone."""

from __future__ import annotations

from tunesmith.train.parts import Parts
from tunesmith.train.position import Position


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def evaluation_left(parts: Parts, position: Position) -> bool:
    """Whether an evaluation of this step is due and not done; the same on every rank."""
    measures = parts.evaluate is not None or parts.measure_general is not None
    return measures and position.evaluated != position.step and _is_due(parts, position, parts.settings.evaluate_every)


def answers_left(parts: Parts, position: Position) -> bool:
    """Whether answers to the fixed prompts are due and not given; never on ranks that give none."""
    answers = parts.show_samples is not None
    return answers and position.sampled != position.step and _is_due(parts, position, parts.settings.sample_every)


def is_left(parts: Parts, position: Position) -> bool:
    return evaluation_left(parts, position) or answers_left(parts, position)


def _is_due(parts: Parts, position: Position, every: int) -> bool:
    return position.step == parts.total or due(position.step, every)
