"""What a run learned beside what it lost: every checkpoint against the base, the front of them, and one to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tunesmith.errors import Diagnostic, Fix
from tunesmith.evaluate.advice import Advice
from tunesmith.evaluate.changes import Change, Draws, Sheet, Side, compare, draw
from tunesmith.evaluate.front import unbeaten
from tunesmith.evaluate.metrics import Score
from tunesmith.evaluate.paired import holm

BASE = "base"
FEWEST = 8  # records or exercises of a side, below which nothing is claimed of it


@dataclass(frozen=True, slots=True)
class Weights:
    """One state of a run's weights and its results; `step` is None for the base and for final weights alone."""

    name: str
    step: int | None
    final: bool
    sheets: tuple[Sheet, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One state beside the base. `learned` and `kept` are the means of its changes at the new task and elsewhere.

    `summary` is (1 - weight) learned + weight kept. All are turned so that more is better; the base has 0 everywhere.
    """

    name: str
    step: int | None
    final: bool
    scores: dict[str, Score]
    changes: tuple[Change, ...]
    learned: Score
    kept: Score
    summary: Score

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "step": self.step,
            "final": self.final,
            "scores": {task: score.to_json() for task, score in self.scores.items()},
            "changes": [one.to_json() for one in self.changes],
            **{name: score.to_json() for name, score in self.figures.items()},
        }

    @property
    def figures(self) -> dict[str, Score]:
        return {"learned": self.learned, "kept": self.kept, "summary": self.summary}


@dataclass(frozen=True, slots=True)
class Report:
    """All of it. `tasks` say which side each is on and what is measured; `best` is the state to take, `why` the reason.

    `work` counts what was measured now and what an earlier call had measured.
    """

    run: str
    weight: float
    tasks: dict[str, tuple[Side, str]]
    points: tuple[Point, ...]
    front: tuple[str, ...]
    best: str
    why: str
    advice: tuple[Advice, ...] = ()
    warnings: tuple[Diagnostic, ...] = ()
    work: dict[str, float] = field(default_factory=dict)

    @property
    def last(self) -> Point:
        """The final weights, or the newest ones of a run that has none."""
        return next((one for one in self.points if one.final), self.points[-1])

    @property
    def chosen(self) -> Point:
        return next(one for one in self.points if one.name == self.best)

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "weight": self.weight,
            "tasks": {name: {"side": side, "measure": measure} for name, (side, measure) in self.tasks.items()},
            "points": [one.to_json() for one in self.points],
            "front": list(self.front),
            "best": self.best,
            "why": self.why,
            "advice": [one.to_json() for one in self.advice],
            "warnings": [one.to_json() for one in self.warnings],
            "work": self.work,
        }


def report_on(run: str, states: Sequence[Weights], weight: float, warnings: Sequence[Diagnostic] = ()) -> Report:
    """The report on a run's states, the base first; every one of them has the same tasks and exercises."""
    base = states[0]
    drawn = {state.name: draws_of(base, state, weight) for state in states}
    points = tuple(point_of(base, state, drawn[state.name]) for state in states)
    places = {one.name: (-one.learned.value, -one.kept.value) for one in points}
    best, why = choose(points, {name: found["summary"] for name, found in drawn.items()})
    return Report(
        run,
        weight,
        {sheet.task: (sheet.side, sheet.measure.name) for sheet in base.sheets},
        points,
        unbeaten(places),
        best,
        why,
        warnings=(*few(base), *warnings),
    )


def draws_of(base: Weights, state: Weights, weight: float) -> dict[str, Draws]:
    """The change at every task, and those of the two sides and of the summary."""
    found = {one.task: draw(one, other) for one, other in zip(base.sheets, state.sheets, strict=True)}
    learned, kept = (
        Draws.mean_of([found[one.task] for one in base.sheets if one.side == side]) for side in ("new", "general")
    )
    value = (1 - weight) * learned.value + weight * kept.value
    summary = Draws(value, (1 - weight) * learned.drawn + weight * kept.drawn)
    return {**found, "learned": learned, "kept": kept, "summary": summary}


def point_of(base: Weights, state: Weights, drawn: dict[str, Draws]) -> Point:
    changes = [compare(one, other, drawn[one.task]) for one, other in zip(base.sheets, state.sheets, strict=True)]
    ps = holm([one.p for one in changes])
    sizes = {side: sum(len(one.names) for one in base.sheets if one.side == side) for side in ("new", "general")}
    return Point(
        state.name,
        state.step,
        state.final,
        {sheet.task: sheet.score for sheet in state.sheets},
        tuple(replace(one, p_adjusted=p) for one, p in zip(changes, ps, strict=True)),
        drawn["learned"].score(sizes["new"]),
        drawn["kept"].score(sizes["general"]),
        drawn["summary"].score(sum(sizes.values())),
    )


def choose(points: Sequence[Point], drawn: dict[str, Draws]) -> tuple[str, str]:
    """The state to take: the final one, unless another is shown to be better or the base is."""
    base, *others = points
    last = next((one for one in others if one.final), others[-1])
    best = max(others, key=lambda one: one.summary.value)
    if all(one.summary.high < 0 for one in others):
        return base.name, f"what was lost weighs more than what was learned, at {best.name} and everywhere else"
    if best is last:
        return last.name, "no other weights have a higher weighted summary"
    ahead = drawn[best.name]
    gap = Draws(ahead.value - drawn[last.name].value, ahead.drawn - drawn[last.name].drawn).score(0, len(others) - 1)
    told = f"{gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
    if gap.low <= 0:
        return last.name, f"{best.name} is ahead of it by {told}, which shows no difference"
    return best.name, f"its weighted summary is ahead of that of {last.name} by {told}"


def few(base: Weights) -> list[Diagnostic]:
    """W458 for a side of so few records that nothing can be claimed of it."""
    found: list[Diagnostic] = []
    for side, words in (("new", "the new task"), ("general", "what the model could do")):
        count = sum(len(one.names) for one in base.sheets if one.side == side)
        if count < FEWEST:
            message = f"{words} is measured on {count} records: nothing is claimed of fewer than {FEWEST}"
            found.append(Diagnostic("W458", message, "warning", fixes=(Fix("give more held-out records"),)))
    return found
