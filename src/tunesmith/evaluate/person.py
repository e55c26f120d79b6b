"""A person compares two answers in the terminal: blind, sides drawn by lot, every vote kept at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.errors import Diagnostic
from tunesmith.evaluate.labellers import Outcome, Progress, Question
from tunesmith.rollout.journal import Journal

KEYS = "1, 2: the better one   t: tie   b: both bad   u: undo   q: quit, votes stay"
VOTES: dict[str, Outcome] = {"1": "first", "2": "second", "t": "tie", "b": "bad"}
TURNED: dict[Outcome, Outcome] = {"first": "second", "second": "first", "tie": "tie", "bad": "bad"}


@dataclass(frozen=True, slots=True)
class Shown:
    """What a person sees of a question: which one it is of how many, the prompt, and the answers as 1 and 2."""

    number: int
    total: int
    question: Question
    one: str
    two: str


@dataclass(slots=True)
class Person:
    """Votes by `read_key`, one key each; `show` draws a question. Votes of earlier sittings stand.

    Which answer is shown as 1 depends on `seed` and the question alone, so that undoing shows it as before.
    """

    votes: Journal
    read_key: Callable[[], str]
    show: Callable[[Shown], None]
    seed: int = 0

    def compare(self, questions: Sequence[Question], on_progress: Progress | None = None) -> list[Outcome | None]:
        """None for what is left open by quitting; end of input quits as well."""
        cast = read_votes(self.votes)
        order: list[str] = []  # of this sitting, for undo
        keys = [question.key for question in questions]
        while (at := next((at for at, key in enumerate(keys) if key not in cast), None)) is not None:
            turned = is_turned(self.seed, keys[at])
            question = questions[at]
            one, two = (question.second, question.first) if turned else (question.first, question.second)
            self.show(Shown(len(cast.keys() & set(keys)) + 1, len(set(keys)), question, one, two))
            key = self.wait_for_key()
            if key == "q":
                break
            if key == "u":
                if order:
                    taken = order.pop()
                    self.votes.write({"undo": taken}, sync=True)
                    del cast[taken]
                continue
            vote = TURNED[VOTES[key]] if turned else VOTES[key]
            self.votes.write({"key": keys[at], "vote": vote, "turned": turned}, sync=True)
            cast[keys[at]] = vote
            order.append(keys[at])
            if on_progress is not None:
                on_progress(len(cast), len(questions))
        return [cast.get(key) for key in keys]

    def warnings(self) -> list[Diagnostic]:
        return []

    def wait_for_key(self) -> str:
        """The next key that means something."""
        while True:
            key = self.read_key()
            if key in ("", "\x03", "\x04"):  # end of input, Ctrl-C, Ctrl-D
                return "q"
            if key.lower() in (*VOTES, "u", "q"):
                return key.lower()


def is_turned(seed: int, key: str) -> bool:
    """Whether the second answer of a question is shown as 1."""
    return bool(np.random.SeedSequence([seed, int(key, 16)]).generate_state(1)[0] & 1)


def read_votes(votes: Journal) -> dict[str, Outcome]:
    """Votes that hold, by question."""
    outcomes: dict[str, Outcome] = {outcome: outcome for outcome in VOTES.values()}
    cast: dict[str, Outcome] = {}
    for row in votes.rows:
        if "undo" in row:
            cast.pop(str(row["undo"]), None)
        elif row.get("vote") in outcomes:
            cast[str(row.get("key"))] = outcomes[row["vote"]]
    return cast
