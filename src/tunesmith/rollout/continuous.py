"""Continuous batching: as rows end, the next requests take their places, so that a batch stays full to the last."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

from tunesmith.rollout.engine.engine import Engine
from tunesmith.rollout.engine.table import Prompt, Table

Name = TypeVar("Name")


@dataclass(frozen=True, slots=True)
class Asked(Generic[Name]):
    """One answer to make: to which prompt, of at most `room` tokens."""

    name: Name
    prompt: int
    room: int


@dataclass(slots=True)
class Live(Generic[Name]):
    asked: Asked[Name]
    prompt: Prompt
    stops: frozenset[int]
    tokens: list[int] = field(default_factory=list)
    ended: bool = False  # by the caller

    @property
    def is_over(self) -> bool:
        if self.ended or not self.tokens:
            return self.ended
        return self.tokens[-1] in self.stops or len(self.tokens) >= self.asked.room


Choose = Callable[[Float[Tensor, "B V"], Sequence[Live[Name]]], Sequence[int]]


def answers(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    asked: Sequence[Asked[Name]],
    choose: Choose[Name],
    stops: frozenset[int],
    batch_size: int,
    done: Container[Name] = (),
) -> Iterator[tuple[Name, int, bool]]:
    """(name, token, whether the answer ends here) of all that is asked, in the order in which tokens come.

    A prompt is read once, when its first answer begins, and kept until its last one has begun. Answers that the caller
    puts among `done` end too. All pages are given back, also when the caller stops listening.
    """

    def advance(logits: Float[Tensor, "B V"], live: Sequence[Live[Name]]) -> Sequence[int]:
        tokens = choose(logits, live)
        for each, token in zip(live, tokens, strict=True):
            each.tokens.append(token)
        return tokens

    texts = [tuple(prompt) for prompt in prompts]
    waiting = deque(Live(each, texts[each.prompt], stops) for each in asked)
    left = Counter(each.prompt for each in waiting)
    table = Table[Live[Name]](engine, advance)
    try:
        while waiting or table.seats:
            new = [waiting.popleft() for _ in range(min(batch_size - len(table.seats), len(waiting)))]
            forget(left, new)
            for seat in table.turn(new, left):
                yield seat.who.asked.name, seat.last, seat.who.is_over
                seat.who.ended = seat.who.asked.name in done
            table.sweep()
    finally:
        table.close()


def forget(left: Counter[Prompt], new: Sequence[Live[Name]]) -> None:
    """Count those that begin; a prompt whose last answer begins is no longer in it."""
    for each in new:
        left[each.prompt] -= 1
        if not left[each.prompt]:
            del left[each.prompt]
