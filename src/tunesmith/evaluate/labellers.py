"""Who says which answer is better: a reward model, a rule, or somebody who compares two at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, Protocol

from tunesmith.errors import Diagnostic, NumericalError, TunesmithError, Where
from tunesmith.evaluate.rules import Rule
from tunesmith.rollout.answers import Answered
from tunesmith.rollout.prompts import Prompt
from tunesmith.types import Message, Turns

Progress = Callable[[int, int], None]
Outcome = Literal["first", "second", "tie", "bad"]  # bad: neither is good enough


@dataclass(frozen=True, slots=True)
class Marks:
    """One mark per answer, the higher the better; `all_bad` when somebody found none good enough."""

    scores: tuple[float, ...]
    all_bad: bool = False


class Labeller(Protocol):
    """Marks the answers to each prompt; None where nobody has looked at all of them yet.

    `pass_mark` is the least mark of an answer that is right, where the labeller knows of right and wrong.
    """

    pass_mark: float | None

    def mark(self, rows: Sequence[Answered], on_progress: Progress | None = None) -> list[Marks | None]: ...

    def warnings(self) -> list[Diagnostic]:
        """What makes the marks doubtful."""
        ...


class Scores(Protocol):
    """A reward model: the reward of each (prompt, answer)."""

    def score(self, items: Sequence[tuple[Turns, Turns]], on_progress: Progress | None = None) -> list[float]: ...


class ByReward:
    """Marks are the rewards of a model; NumericalError E151 when one is not a number."""

    pass_mark: float | None = None

    def __init__(self, model: Scores) -> None:
        self.model = model

    def mark(self, rows: Sequence[Answered], on_progress: Progress | None = None) -> list[Marks | None]:
        flat = [(row.prompt.turns, answer_turns(row.prompt, text)) for row in rows for text in row.answers]
        rewards = self.model.score(flat, on_progress)
        if not all(reward - reward == 0.0 for reward in rewards):
            fixes = ["check the reward model: its weights hold NaN, or it overflows in its number type"]
            raise NumericalError("E151", "the reward model gives rewards that are not finite numbers", fixes=fixes)
        left = iter(rewards)
        return [Marks(tuple(next(left) for _ in row.answers)) for row in rows]

    def warnings(self) -> list[Diagnostic]:
        return []


class ByRule:
    """Marks are what a rule says of each answer by itself."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.pass_mark = rule.pass_mark

    def mark(self, rows: Sequence[Answered], on_progress: Progress | None = None) -> list[Marks | None]:
        return [self._mark(row) for row in rows]

    def warnings(self) -> list[Diagnostic]:
        return []

    def _mark(self, row: Answered) -> Marks:
        try:
            return Marks(tuple(self.rule.mark(answer, row.prompt.reference) for answer in row.answers))
        except TunesmithError as error:
            raise error.at(Where(row.prompt.file, row.prompt.line)) from error


@dataclass(frozen=True, slots=True)
class Question:
    """Two answers to one prompt: which is better?"""

    prompt: Prompt
    first: str
    second: str

    @property
    def key(self) -> str:
        """The same for the same question, in whatever file it stands."""
        text = json.dumps([self.prompt.to_json()["prompt"], self.first, self.second], ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


class Comparer(Protocol):
    """Answers questions in order; None for those that stay open."""

    def compare(self, questions: Sequence[Question], on_progress: Progress | None = None) -> list[Outcome | None]: ...

    def warnings(self) -> list[Diagnostic]: ...


class ByComparison:
    """Every answer meets every other one to its prompt; its mark is the share it wins, a tie counting one half.

    Equal answers are a tie without asking.
    """

    pass_mark: float | None = None

    def __init__(self, comparer: Comparer) -> None:
        self.comparer = comparer

    def mark(self, rows: Sequence[Answered], on_progress: Progress | None = None) -> list[Marks | None]:
        asked = [Question(row.prompt, row.answers[i], row.answers[j]) for row in rows for i, j in meetings(row.answers)]
        outcomes = iter(self.comparer.compare(asked, on_progress))
        return [tally(row.answers, outcomes) for row in rows]

    def warnings(self) -> list[Diagnostic]:
        return self.comparer.warnings()


def meetings(answers: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Places of the answers that meet; equal ones do not."""
    return ((i, j) for i, j in combinations(range(len(answers)), 2) if answers[i] != answers[j])


def tally(answers: Sequence[str], outcomes: Iterator[Outcome | None]) -> Marks | None:
    """Shares of meetings won, from the outcomes of this prompt's meetings; None when one is open."""
    met = {(i, j): next(outcomes) for i, j in meetings(answers)}
    if any(outcome is None for outcome in met.values()):
        return None
    points = [0.0] * len(answers)
    for i, j in combinations(range(len(answers)), 2):
        outcome = met.get((i, j), "tie")
        points[i] += {"first": 1.0, "second": 0.0}.get(str(outcome), 0.5)
        points[j] += {"first": 0.0, "second": 1.0}.get(str(outcome), 0.5)
    others = max(1, len(answers) - 1)
    all_bad = bool(met) and all(outcome == "bad" for outcome in met.values())
    return Marks(tuple(each / others for each in points), all_bad)


def answer_turns(prompt: Prompt, text: str) -> Turns:
    """An answer in the form of its prompt: a turn of the assistant, or plain text."""
    return text if isinstance(prompt.turns, str) else (Message("assistant", text),)
