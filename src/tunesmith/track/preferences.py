"""How preferences developed over a run: margin, accuracy, both answers apart, and what should worry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.track.reader import Row, number, series

MARGIN = "train/rewards/margin"
FIGURES = {  # metric: how it is called
    "rewards/accuracy": "accuracy",
    "rewards/margin": "reward margin",
    "rewards/chosen": "reward of chosen",
    "rewards/rejected": "reward of rejected",
    "rewards/good": "reward of good answers",
    "rewards/bad": "reward of bad answers",
    "logps/chosen": "log-probability of chosen",
    "logps/rejected": "log-probability of rejected",
    "kl": "log-ratio to the reference",
    "displacement": "displaced pairs",
    "length/chosen": "length of chosen",
    "length/rejected": "length of rejected",
}
LEARNED = {  # what is told of other objectives
    "accuracy": "accuracy",
    "absolute_error": "mean absolute error",
}
ROUNDS = {  # metric of a round of an online run: its column
    "online/mean_mark": "marks",
    "online/best_mark": "best",
    "online/records": "records",
    "online/ties": "ties",
    "online/finished": "finished",
    "online/distinct": "distinct",
    "length/mean": "tokens",
    "train/loss": "loss",
}
SHARE = 10  # the first and the last tenth of the steps are compared
DISPLACED = 0.5  # share of pairs whose answers both became less likely that is worth a warning
LONGER = 1.25  # ratio of lengths from which a preference may be one for length


@dataclass(frozen=True, slots=True)
class Course:
    """A figure in the first and the last tenth of a run, and on held-out records at its end."""

    name: str
    title: str
    first: float
    last: float
    held_out: float | None

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "first": self.first, "last": self.last, "held_out": self.held_out}


def rounds(rows: Iterable[Row]) -> list[dict[str, float | None]]:
    """A row for each round of an online run, counted from 1; none for another run."""
    return [
        {"round": row["step"], **{name: number(row.get(name)) for name in ROUNDS}}
        for row in rows
        if "online/records" in row
    ]


def courses(rows: Iterable[Row], figures: Mapping[str, str] = FIGURES) -> list[Course]:
    """Every one of the figures that the run recorded; those of preferences unless told otherwise."""
    rows = list(rows)
    found = []
    for name, title in figures.items():
        _, values = series(rows, f"train/{name}")
        if not values:
            continue
        size = max(1, len(values) // SHARE)
        _, held_out = series(rows, f"eval/{name}")
        first, last = (sum(part) / size for part in (values[:size], values[-size:]))
        found.append(Course(name, title, first, last, held_out[-1] if held_out else None))
    return found


def worries(found: Iterable[Course]) -> list[str]:
    """What a person should look at: displaced likelihood, a preference for length, pairs learned by heart."""
    by_name = {course.name: course for course in found}
    told = []
    displaced = by_name.get("displacement")
    if displaced is not None and displaced.last > DISPLACED:
        told.append(
            f"likelihood displacement: in {displaced.last:.0%} of the pairs both answers became less likely than under "
            "the reference; add likelihood of the chosen answer (objective=rpo) or lower the learning rate"
        )
    if lengths_differ(by_name):
        told.append(
            "chosen answers are much longer than rejected ones: the model may learn length; "
            "ln_dpo and simpo compare means per token"
        )
    accuracy = by_name.get("rewards/accuracy")
    if accuracy is not None and accuracy.held_out is not None and accuracy.last - accuracy.held_out > 0.2:
        told.append(
            f"pairs are told apart in training ({accuracy.last:.0%}) but less on held-out records "
            f"({accuracy.held_out:.0%}): fewer epochs or a lower learning rate"
        )
    return told


def lengths_differ(by_name: Mapping[str, Course]) -> bool:
    chosen, rejected = by_name.get("length/chosen"), by_name.get("length/rejected")
    return chosen is not None and rejected is not None and chosen.last > LONGER * rejected.last
