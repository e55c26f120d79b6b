"""Where a run stands, and whether a checkpoint is one of the same run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

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
    sampled: int = -1  # step of the last answers to the fixed prompts
    general_start: float | None = None  # loss on general data before the first step, and at the last evaluation
    general_loss: float | None = None
    microbatch_tokens: int = 0  # to which memory that ran out has brought them down; 0: those of the recipe
    memory: dict[str, float] = field(default_factory=dict)  # what objectives remember from step to step


def restored(state: Mapping[str, Any]) -> Position:
    """The position of a checkpoint; one of an older version took no note of answers, which were there."""
    return Position(**{"sampled": state["step"], **state})


def without(about: dict[str, Any], ignore: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in about.items() if key not in ignore}


@dataclass(frozen=True, slots=True)
class Known:
    """What this version knows of settings: the default of each one and of each group, and which are compared."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    compared: Callable[[str], bool] = bool


def check_same(old: Mapping[str, Any], new: Mapping[str, Any], known: Known) -> dict[str, Any]:
    """Compare two flat descriptions key by key; returns what the old one says of settings that there are no more.

    A setting that is younger than the old description had its default then. Raises CheckpointError E116.
    """
    old, new = spread(old, new), spread(new, old)
    old = {**old, **missing(old, new, known)}
    old, new = ({key: value for key, value in each.items() if known.compared(key)} for each in (old, new))
    gone = {key: value for key, value in old.items() if key not in new and is_gone(key, new, known)}
    changed = [key for key in sorted(old.keys() | new.keys()) if key not in gone and old.get(key) != new.get(key)]
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
    return gone


def missing(old: Mapping[str, Any], new: Mapping[str, Any], known: Known) -> dict[str, Any]:
    """What the old description would say of keys that only the new one has: their defaults, or those of their groups.

    What is no setting, such as a hash that was not taken then, cannot be compared and counts as the same.
    """
    found: dict[str, Any] = {}
    for key in new.keys() - old.keys():
        parts = key.split(".")
        paths = [".".join(parts[: length + 1]) for length in range(len(parts))]
        if is_group(key, old) or any(path in old for path in paths):
            continue
        top = next(path for path in paths if not is_group(path, old))
        if top in known.defaults:
            found |= flatten(known.defaults[top], top)
        elif paths[0] not in known.defaults:
            found[key] = new[key]
    return found


def is_group(path: str, flat: Mapping[str, Any]) -> bool:
    return any(key.startswith(f"{path}.") for key in flat)


def is_gone(key: str, new: Mapping[str, Any], known: Known) -> bool:
    """Whether no such setting is left: not even one that is a group now, or is none any more, or holds names."""
    parts = key.split(".")
    around = [".".join(parts[: length + 1]) for length in range(len(parts))]
    holds_names = any(path in known.defaults and not is_group(path, known.defaults) for path in around)
    return not (holds_names or is_group(key, new) or any(path in new for path in around))


def spread(flat: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The same with lists of groups as keys of their own, where the other one has as many of them."""
    found: dict[str, Any] = {}
    for key, value in flat.items():
        beside = other.get(key)
        if are_groups(value) and are_groups(beside) and len(value) == len(beside):
            for index, inner in enumerate(value):
                found |= flatten(inner, f"{key}.{index}")
        else:
            found[key] = value
    return found


def are_groups(value: Any) -> TypeGuard[Sequence[dict[str, Any]]]:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(each, dict) for each in value)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat
