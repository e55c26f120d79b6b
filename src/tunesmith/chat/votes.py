"""A person's votes between two models, kept at once: pairs to train on, and beside them what is no pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from tunesmith.data.tokenizer import to_json as message_json
from tunesmith.errors import UsageError, Where
from tunesmith.evaluate.labellers import Question
from tunesmith.evaluate.metrics import Score, proportion
from tunesmith.evaluate.person import is_turned
from tunesmith.rollout.journal import Journal
from tunesmith.rollout.prompts import Prompt
from tunesmith.types import Message

Vote = Literal["1", "2", "tie", "bad"]
WORDS: dict[str, Vote] = {"1": "1", "2": "2", "tie": "tie", "t": "tie", "both bad": "bad", "bad": "bad", "b": "bad"}
Weights = Mapping[str, Mapping[str, str]]  # hashes of the weights behind each name


class Place(NamedTuple):
    """Where a vote stands in a file, and what it says."""

    kind: str
    begin: int
    end: int
    said: str


@dataclass(frozen=True, slots=True)
class Duel:
    """What two models answered to one prompt, by name, and whether the second is shown as 1."""

    prompt: tuple[Message, ...]
    answers: dict[str, str]
    turned: bool

    @classmethod
    def of(cls, prompt: Sequence[Message], answers: Mapping[str, str], seed: int) -> Duel:
        """The order depends on the seed, the prompt and the answers alone."""
        one, other = answers.values()
        key = Question(Prompt(tuple(prompt), "chat", 0), one, other).key
        return cls(tuple(prompt), dict(answers), is_turned(seed, key))

    @property
    def shown(self) -> tuple[str, str]:
        """The names behind 1 and 2."""
        one, other = self.answers
        return (other, one) if self.turned else (one, other)

    @property
    def texts(self) -> tuple[str, str]:
        """The answers shown as 1 and 2."""
        one, other = self.shown
        return self.answers[one], self.answers[other]


@dataclass(frozen=True, slots=True)
class Tally:
    """Votes between two models. `rate` is how often the first is preferred, ties and both bad one half; None: none."""

    models: tuple[str, str]
    wins: tuple[int, int]
    ties: int
    bad: int
    earlier: int  # of the votes, those of earlier sittings

    @property
    def rate(self) -> Score | None:
        hits = [1.0] * self.wins[0] + [0.0] * self.wins[1] + [0.5] * (self.ties + self.bad)
        return proportion(hits) if hits else None

    def to_json(self) -> dict[str, Any]:
        rate = None if self.rate is None else self.rate.to_json()
        wins = dict(zip(self.models, self.wins, strict=True))
        return {"wins": wins, "ties": self.ties, "both_bad": self.bad, "earlier": self.earlier, "preferred": rate}


class Votes:
    """`path` holds pairs in the form that training reads; ties and answers that are both bad stand in `others`.

    Votes of earlier sittings stay. UsageError E485: the file was written by something else; E261: it is in use.
    """

    def __init__(self, path: Path, weights: Weights, seed: int) -> None:
        self.weights = {name: dict(hashes) for name, hashes in weights.items()}
        self.seed = seed
        self.path, self.others = path, path.with_name(f"{path.stem}.ties.jsonl")
        self.journals = {"pair": Journal(path)}
        try:
            self.journals["other"] = Journal(self.others)
            for journal in self.journals.values():
                check_votes(journal)
        except BaseException:
            self.close()
            raise
        rows = [row for journal in self.journals.values() for row in journal.rows]
        self.cast = [vote for row in rows if (vote := self.read(row["vote"])) is not None]
        self.earlier = len(self.cast)
        self.by_turn: dict[int, Place] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Files that hold nothing go."""
        for journal in self.journals.values():
            journal.end()

    def read(self, vote: Mapping[str, Any]) -> str | None:
        """The name that won, `tie` or `bad`; None when it was between other weights."""
        by_weights = {frozenset(hashes.items()): name for name, hashes in self.weights.items()}
        found = {name: by_weights.get(frozenset(hashes.items())) for name, hashes in vote["weights"].items()}
        if set(found.values()) != set(self.weights):
            return None
        return vote["said"] if vote["said"] in ("tie", "bad") else found[vote["said"]]

    def write(self, duel: Duel, vote: Vote, settings: Mapping[str, Any], turn: int | None = None) -> str | None:
        """Keep a vote, on the disk before this returns; the name of the model that won. `take_back` knows its turn."""
        winner = duel.shown[int(vote) - 1] if vote in ("1", "2") else None
        turns = {name: [message_json(Message("assistant", text))] for name, text in duel.answers.items()}
        row: dict[str, Any] = {"prompt": [message_json(message) for message in duel.prompt]}
        if winner is not None:
            (loser,) = set(duel.answers) - {winner}
            row |= {"chosen": turns[winner], "rejected": turns[loser]}
        else:
            row |= {"answers": list(duel.answers.values()), "scores": [0.0, 0.0]}
        told = {"said": winner or vote, "first": duel.shown[0], "models": list(duel.answers), "weights": self.weights}
        row["vote"] = {**told, "seed": self.seed, "settings": dict(settings)}
        kind = "other" if winner is None else "pair"
        begin = self.journals[kind].offset()
        self.journals[kind].write(row, sync=True)
        self.cast.append(winner or vote)
        if turn is not None:
            self.by_turn[turn] = Place(kind, begin, self.journals[kind].offset(), winner or vote)
        return winner

    def settle(self) -> None:
        """What was voted so far stays: the turns are those of another conversation from here on."""
        self.by_turn.clear()

    def take_back(self, turn: int) -> bool:
        """Take the vote of the newest turn out of its file again; whether there was one."""
        place = self.by_turn.pop(turn, None)
        if place is None:
            return False
        self.journals[place.kind].cut(place.begin, place.end)
        self.cast.remove(place.said)
        return True

    def tally(self) -> Tally:
        one, other = self.weights
        count = self.cast.count
        return Tally((one, other), (count(one), count(other)), count("tie"), count("bad"), self.earlier)


def check_votes(journal: Journal) -> None:
    if all(isinstance(row.get("vote"), dict) and "weights" in row["vote"] for row in journal.rows):
        return
    message = f"{journal.path.name} is there and holds something else than votes of a chat"
    raise UsageError("E485", message, where=Where(str(journal.path)), fixes=["--votes FILE", "or move it away"])
