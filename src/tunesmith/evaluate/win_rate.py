"""How often one model answers better than another, with an interval, and whether length explains it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.errors import DataError
from tunesmith.evaluate.labellers import Labeller, Marks, Progress
from tunesmith.evaluate.metrics import Score, mean, proportion
from tunesmith.rollout.answers import Answered
from tunesmith.rollout.generator import Generated
from tunesmith.rollout.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Duel:
    """Both answers to a prompt; `hit` is 1 where the first model's is better, 0 where the other's is, 1/2 for a tie."""

    record: str
    prompt: str
    answer: str
    against: str
    hit: float


@dataclass(frozen=True, slots=True)
class WinRate:
    """`rate` counts ties as one half, with its Wilson interval. Lengths are characters of the first model's answers.

    `longer_wins` is the share of decided duels of unequal length that the longer answer won; None without such.
    """

    rate: Score
    wins: int
    losses: int
    ties: int
    open: int  # prompts that nobody has compared
    length: Score
    against_length: Score
    length_of_wins: float | None
    length_of_losses: float | None
    longer_wins: float | None
    duels: list[Duel]

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        del found["duels"]
        return found


def win_rate(
    prompts: Sequence[Prompt],
    answers: Sequence[Generated],
    others: Sequence[Generated],
    labeller: Labeller,
    on_progress: Progress | None = None,
) -> WinRate:
    """Compare answer by answer. An empty answer loses against any other; equal ones are ties.

    DataError E264 when no prompt was compared.
    """
    rows = [
        Answered(prompt, (one.text, other.text), (one.finished, other.finished))
        for prompt, one, other in zip(prompts, answers, others, strict=True)
    ]
    judged = [row for row in rows if is_open(row)]
    marks = iter(labeller.mark(judged, on_progress))
    duels: list[Duel] = []
    for row in rows:
        hit = hit_of(next(marks)) if is_open(row) else decided(row)
        if hit is not None:
            duels.append(Duel(row.place, row.prompt.asked, row.answers[0], row.answers[1], hit))
    if not duels:
        raise DataError("E264", "no prompt was compared", fixes=["vote at least once before quitting"])
    return summarise(duels, len(rows) - len(duels))


def is_open(row: Answered) -> bool:
    return row.answers[0] != row.answers[1] and all(text.strip() for text in row.answers)


def decided(row: Answered) -> float:
    """What needs no judge."""
    one, other = (bool(text.strip()) for text in row.answers)
    return 0.5 if one == other else float(one)


def hit_of(marks: Marks | None) -> float | None:
    if marks is None:
        return None
    one, other = marks.scores
    return 0.5 if one == other else float(one > other)


def summarise(duels: Sequence[Duel], left: int) -> WinRate:
    lengths = [float(len(duel.answer)) for duel in duels]
    others = [float(len(duel.against)) for duel in duels]
    decided = [duel for duel in duels if duel.hit != 0.5 and len(duel.answer) != len(duel.against)]
    longer = [float((len(duel.answer) > len(duel.against)) == (duel.hit == 1.0)) for duel in decided]
    return WinRate(
        rate=proportion([duel.hit for duel in duels]),
        wins=sum(duel.hit == 1.0 for duel in duels),
        losses=sum(duel.hit == 0.0 for duel in duels),
        ties=sum(duel.hit == 0.5 for duel in duels),
        open=left,
        length=mean(lengths),
        against_length=mean(others),
        length_of_wins=average([len(duel.answer) for duel in duels if duel.hit == 1.0]),
        length_of_losses=average([len(duel.answer) for duel in duels if duel.hit == 0.0]),
        longer_wins=average(longer),
        duels=list(duels),
    )


def average(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
