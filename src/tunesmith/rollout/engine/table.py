"""The answers that an engine decodes together: some join, all go one token further, and some leave."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from tunesmith.rollout.engine.engine import Engine
from tunesmith.rollout.engine.pages import Row

Prompt = tuple[int, ...]


class Guest(Protocol):
    """An answer while it is made, of a list that is worked off or of a request that came just now."""

    @property
    def prompt(self) -> Prompt: ...

    @property
    def is_over(self) -> bool: ...


Who = TypeVar("Who", bound=Guest)
Advance = Callable[[Float[Tensor, "B V"], Sequence[Who]], Sequence[int]]


@dataclass(slots=True)
class Seat(Generic[Who]):
    """An answer and its row in the cache; `last` is the token that it goes on with."""

    who: Who
    row: Row
    last: int = 0


@dataclass(frozen=True, slots=True)
class Begun:
    """A prompt that was read: its row, and the logits of what comes next."""

    row: Row
    logits: Float[Tensor, " V"]


class Table(Generic[Who]):
    """`advance` chooses the next token of every answer and tells the answer of it.

    Whoever feeds the table says who joins; the pages of those who are over come back with `sweep`, all with `close`.
    """

    def __init__(self, engine: Engine, advance: Advance[Who]) -> None:
        self.engine, self.advance = engine, advance
        self.seats: list[Seat[Who]] = []
        self.begun: dict[Prompt, Begun] = {}
        self.made, self.read = 0, 0  # tokens of answers and of prompts so far

    def turn(self, new: Sequence[Who], later: Container[Prompt] = ()) -> Sequence[Seat[Who]]:
        """The first token of those who join, or the next one of everybody; the seats that have another token."""
        return self.join(new, later) if new else self.step()

    def join(self, new: Sequence[Who], later: Container[Prompt] = ()) -> Sequence[Seat[Who]]:
        """Prompts that are alike are read once; those of `later` are kept for answers that join then."""
        prompts = list(dict.fromkeys(who.prompt for who in new))
        joining: list[Seat[Who]] = []
        try:
            self.read_prompts([prompt for prompt in prompts if prompt not in self.begun])
            for who in new:
                joining.append(Seat(who, self.engine.fork(self.begun[who.prompt].row)))
            logits = torch.stack([self.begun[who.prompt].logits for who in new])
        finally:
            self.seats += joining
            self.forget([prompt for prompt in prompts if prompt not in later])
        self.choose(logits, joining)
        return joining

    def step(self) -> Sequence[Seat[Who]]:
        if self.seats:
            tokens = torch.tensor([seat.last for seat in self.seats])
            self.choose(self.engine.step([seat.row for seat in self.seats], tokens), self.seats)
        return self.seats

    def read_prompts(self, prompts: Sequence[Prompt]) -> None:
        if not prompts:
            return
        rows, logits = self.engine.read(prompts)
        for prompt, row, own in zip(prompts, rows, logits, strict=True):
            self.begun[prompt] = Begun(row, own)
        self.read += sum(map(len, prompts))

    def forget(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            if prompt in self.begun:
                self.engine.release(self.begun.pop(prompt).row)

    def choose(self, logits: Float[Tensor, "B V"], seats: Sequence[Seat[Who]]) -> None:
        for seat, token in zip(seats, self.advance(logits, [seat.who for seat in seats]), strict=True):
            seat.last = token
        self.made += len(seats)

    def sweep(self) -> bool:
        """Give back what belongs to answers that are over; whether there were any."""
        over = [seat for seat in self.seats if seat.who.is_over]
        for seat in over:
            self.engine.release(seat.row)
        if over:
            self.seats = [seat for seat in self.seats if not seat.who.is_over]
        return bool(over)

    def close(self) -> None:
        for seat in self.seats:
            self.engine.release(seat.row)
        self.seats = []
        self.forget(list(self.begun))
