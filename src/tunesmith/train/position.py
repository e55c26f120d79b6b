"""Where a run stands, and whether a checkpoint is one of the same run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import CheckpointError, Fix


@dataclass(slots=True)
class Position:
    """Where the run stands; saved in every checkpoint."""

    step: int = 0
    tokens: int = 0
    scored: float = 0.0
    saved: int = 0  # of the tokens, those that were not computed again because examples share them
    seconds: float = 0.0
    skipped: int = 0
    clipped: int = 0  # updates whose gradient was scaled down
    first_loss: float | None = None
    last_loss: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    stale: int = 0  # evaluations since the best one
    evaluated: int = -1  # step of the last evaluation
    general_start: float | None = None  # loss on general data before the first step, and at the last evaluation
    general_loss: float | None = None
    microbatch_tokens: int = 0  # to which memory that ran out has brought them down; 0: those of the recipe
    memory: dict[str, float] = field(default_factory=dict)  # what objectives remember from step to step


def without(about: dict[str, Any], ignore: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in about.items() if key not in ignore}


def check_same(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Compare two flat descriptions key by key."""
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if changed:
        raise CheckpointError(
            "E116",
            f"this run was started with other settings: {len(changed)} differ",
            evidence=[f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in changed[:20]],
            fixes=[
                Fix("set them back to resume this run"),
                Fix("--accept-data-change, when only the data hash differs and it is meant to"),
                Fix("start a new run with model.adapter_path pointing at this run's adapter"),
            ],
        )
