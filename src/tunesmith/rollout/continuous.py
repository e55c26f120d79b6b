"""Continuous batching: as rows end, the next requests take their places, so that a batch stays full to the last."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from tunesmith.rollout.engine.engine import Engine
from tunesmith.rollout.engine.pages import Row

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
    row: Row
    tokens: list[int] = field(default_factory=list)

    def ended(self, stops: frozenset[int]) -> bool:
        return bool(self.tokens) and (self.tokens[-1] in stops or len(self.tokens) >= self.asked.room)


Choose = Callable[[Float[Tensor, "B V"], Sequence[Live[Name]]], Sequence[int]]


def answers(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    asked: Sequence[Asked[Name]],
    choose: Choose[Name],
    stops: frozenset[int],
    batch_size: int,
) -> Iterator[tuple[Name, int, bool]]:
    """(name, token, whether the answer ends here) of all that is asked, in the order in which tokens come.

    A prompt is read once, when its first answer begins, and kept until its last one has begun. All pages are given
    back, also when the caller stops listening.
    """
    waiting, live = deque(asked), list[Live[Name]]()
    left = Counter(each.prompt for each in asked)
    begun: dict[int, tuple[Row, Tensor]] = {}
    try:
        while waiting or live:
            new = [waiting.popleft() for _ in range(min(batch_size - len(live), len(waiting)))]
            if new:
                logits = begin(engine, prompts, new, begun)
                joining = [Live(each, engine.fork(begun[each.prompt][0])) for each in new]
                live += joining
                forget(engine, left, [each.prompt for each in new], begun)
            else:
                joining = live
                tokens = torch.tensor([each.tokens[-1] for each in live])
                logits = engine.step([each.row for each in live], tokens)
            for each, token in zip(joining, choose(logits, joining), strict=True):
                each.tokens.append(token)
                yield each.asked.name, token, each.ended(stops)
            for each in live:
                if each.ended(stops):
                    engine.release(each.row)
            live = [each for each in live if not each.ended(stops)]
    finally:
        for row in [each.row for each in live] + [row for row, _ in begun.values()]:
            engine.release(row)


def begin(
    engine: Engine, prompts: Sequence[Sequence[int]], new: Sequence[Asked[Name]], begun: dict[int, tuple[Row, Tensor]]
) -> Float[Tensor, "N V"]:
    """Read the prompts that are new; the logits behind the prompt of each new answer."""
    unread = list(dict.fromkeys(each.prompt for each in new if each.prompt not in begun))
    if unread:
        rows, logits = engine.read([prompts[prompt] for prompt in unread])
        begun.update((prompt, (row, own)) for prompt, row, own in zip(unread, rows, logits, strict=True))
    return torch.stack([begun[each.prompt][1] for each in new])


def forget(engine: Engine, left: Counter[int], prompts: Sequence[int], begun: dict[int, tuple[Row, Tensor]]) -> None:
    """Give back the prompts whose last answer has begun."""
    left.subtract(prompts)
    for prompt in set(prompts):
        if not left[prompt]:
            engine.release(begun.pop(prompt)[0])
