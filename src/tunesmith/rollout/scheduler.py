"""Orders that join and leave while a model decodes: continuous with the engine, one batch at a time without it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from jaxtyping import Float
from torch import Tensor, nn

from tunesmith.errors import TunesmithError
from tunesmith.models.native.decode import PLACES
from tunesmith.rollout.beginning import takes_one_length
from tunesmith.rollout.engine.engine import TOKENS, Engine
from tunesmith.rollout.engine.table import Table
from tunesmith.rollout.generator import steps
from tunesmith.rollout.orders import Answer, Order, Speaker, advance, as_told


class Scheduler(Protocol):
    """`turn` does a little work and says whether there was any; `waiting` are the orders that have not begun."""

    waiting: deque[Order]

    @property
    def made(self) -> int:
        """Tokens so far."""
        ...

    @property
    def read(self) -> int:
        """Tokens of prompts so far."""
        ...

    @property
    def live(self) -> int: ...

    @property
    def pages(self) -> int: ...

    def turn(self) -> bool: ...

    def fail(self, error: TunesmithError) -> None:
        """End every answer that is being made."""
        ...


def pages_of(order: Order) -> int:
    """Pages that an order takes at most, sharing none."""
    return order.count * -(-(len(order.prompt) + order.sampling.max_new_tokens) // PLACES)


class EngineScheduler:
    """One model in the engine. An order begins when there are rows for all its answers and pages for all their tokens.

    A turn reads new prompts, at most TOKENS of them, or takes every row one token further, as `answers` does for a list
    that is known from the beginning. Orders begin in the order in which they came.
    """

    def __init__(self, engine: Engine, speaker: Speaker, batch_size: int, pages: int) -> None:
        self.engine, self.speaker, self.batch_size, self.room = engine, speaker, batch_size, pages
        self.waiting: deque[Order] = deque()
        self.table = Table[Answer](engine, advance)
        self.reserved: dict[Order, int] = {}
        self.beginning: list[Order] = []

    @property
    def made(self) -> int:
        return self.table.made

    @property
    def read(self) -> int:
        return self.table.read

    @property
    def live(self) -> int:
        return len(self.table.seats)

    @property
    def pages(self) -> int:
        return self.engine.pages.used

    def turn(self) -> bool:
        self.sweep()
        self.beginning = self.admit()
        new = self.answers_of(self.beginning)
        if not (new or self.beginning or self.table.seats):
            return False
        self.table.turn(new)
        self.beginning = []
        self.sweep()
        return True

    def admit(self) -> list[Order]:
        """The waiting orders that begin now."""
        new: list[Order] = []
        rows, pages = self.batch_size - self.live, self.room - sum(self.reserved.values())
        while self.waiting:
            order = self.waiting[0]
            rows, pages = rows - order.count, pages - pages_of(order)
            too_long = new and sum(len(each.prompt) for each in [*new, order]) > TOKENS
            if rows < 0 or pages < 0 or too_long:
                break
            new.append(self.waiting.popleft())
        return new

    def answers_of(self, new: Sequence[Order]) -> list[Answer]:
        found: list[Answer] = []
        for order in new:
            try:
                found += order.answers(self.speaker.tokenizer, self.speaker.stop_ids)
            except Exception as error:
                order.fail(as_told(error))
            else:
                self.reserved[order] = pages_of(order)
        return found

    def sweep(self) -> None:
        """Give back what belongs to answers that are over, and forget orders that nobody waits for."""
        if any(order.cancelled for order in self.waiting):
            self.waiting = deque(order for order in self.waiting if not order.cancelled)
        if self.table.sweep():
            left = {seat.who.order for seat in self.table.seats}
            self.reserved = {order: pages for order, pages in self.reserved.items() if order in left}

    def fail(self, error: TunesmithError) -> None:
        for order in [*self.beginning, *(seat.who.order for seat in self.table.seats)]:
            order.fail(error)
            self.reserved.pop(order, None)
        self.beginning = []
        self.sweep()


Activate = Callable[[str], nn.Module]


class BatchScheduler:
    """Models that the engine does not serve, all of one base: orders of the same model are one batch, which ends whole.

    `activate` puts a model's adapter to work and gives the module that decodes.
    """

    def __init__(self, activate: Activate, speakers: Mapping[str, Speaker], batch_size: int) -> None:
        self.activate, self.speakers, self.batch_size = activate, dict(speakers), batch_size
        self.waiting: deque[Order] = deque()
        self.answers: list[Answer] = []
        self.stream: Iterator[tuple[int, int]] | None = None
        self.made, self.read = 0, 0

    @property
    def live(self) -> int:
        return sum(not answer.is_over for answer in self.answers)

    @property
    def pages(self) -> int:
        return 0

    def turn(self) -> bool:
        if self.stream is None:
            new = self.admit()
            if not new:
                return False
            self.stream = self.decode(new)
        if next(self.stream, None) is None:
            self.stream, self.answers = None, []
        return True

    def admit(self) -> list[Order]:
        """The next orders of one model that can be decoded together."""
        new: list[Order] = []
        alone = False
        for order in list(self.waiting):
            if order.cancelled:
                self.waiting.remove(order)
                continue
            if not new:
                alone = takes_one_length(self.activate(order.model))
            first = new[0] if new else order
            fits = order.model == first.model and not (alone and len(order.prompt) != len(first.prompt))
            if fits and sum(each.count for each in new) + order.count <= max(self.batch_size, first.count):
                new.append(order)
                self.waiting.remove(order)
        return new

    def decode(self, new: Sequence[Order]) -> Iterator[tuple[int, int]]:
        """One step of the model for each that is taken; an answer that is over leaves the batch."""
        model, speaker = self.activate(new[0].model), self.speakers[new[0].model]
        owners: list[int] = []
        for number, order in enumerate(new):
            try:
                found = order.answers(speaker.tokenizer, speaker.stop_ids)
            except Exception as error:
                order.fail(as_told(error))
                continue
            self.answers += found
            owners += [number] * len(found)
        if not self.answers:
            return
        self.read += sum(len(order.prompt) for order in new)

        def pick(logits: Float[Tensor, "B V"], rows: Sequence[int]) -> list[int]:
            self.made += len(rows)
            return advance(logits, [self.answers[row] for row in rows])

        room = max(answer.order.sampling.max_new_tokens for answer in self.answers)
        yield from steps(model, [order.prompt for order in new], owners, room, pick, Over(self.answers))

    def fail(self, error: TunesmithError) -> None:
        for answer in self.answers:
            answer.order.fail(error)
        self.stream, self.answers = None, []


class Over:
    """The rows whose answers are over, as a collection that is always up to date."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.answers = answers

    def __contains__(self, row: object) -> bool:
        return isinstance(row, int) and self.answers[row].is_over
