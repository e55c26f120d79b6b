"""Answers that a server makes: what is asked of each, what is told of every token, and how it ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import NumericalError, TunesmithError
from tunesmith.rollout.choosing import Chooser, Sampling, choose_each, not_finite, row_draws
from tunesmith.rollout.text import GrowingText, StopFinder

LOG = logging.getLogger("tunesmith.rollout")
Reason = Literal["stop", "length"]


class Constraint(Protocol):
    """What lets through only tokens of a grammar; raises a TunesmithError where it cannot go on."""

    def allowed(self, count: int) -> Bool[Tensor, " V"]: ...

    def take(self, token: int) -> bool:
        """Go on behind a token; whether the grammar is at its end."""
        ...


@dataclass(frozen=True, slots=True)
class Said:
    """A token with its log-probability under the model alone, and those of the likeliest; None when not asked for."""

    token: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What an answer goes on with: its index in the request, text and the tokens behind it, and why it ended."""

    index: int
    text: str
    said: tuple[Said, ...]
    made: int  # tokens of the answer so far
    reason: Reason | None = None


Deliver = Callable[[Piece | TunesmithError], None]


@dataclass(slots=True, eq=False)
class Order:
    """`count` answers to one prompt; `deliver` hears of every piece on the thread that decodes, and must not wait."""

    model: str
    prompt: Sequence[int]
    sampling: Sampling
    deliver: Deliver
    count: int = 1
    first: int = 0  # index of the first answer
    stops: tuple[str, ...] = ()
    logprobs: int | None = None  # how many of the likeliest tokens are told beside each
    ignore_eos: bool = False
    constraint: Callable[[], Constraint] | None = None
    shown: frozenset[int] = frozenset()  # control tokens that are part of the text
    cancelled: bool = False
    since: float = field(default_factory=time.monotonic)

    def answers(self, tokenizer: Tokenizer, stop_ids: frozenset[int]) -> list[Answer]:
        return [Answer(self, index, tokenizer, stop_ids) for index in range(self.count)]

    def fail(self, error: TunesmithError) -> None:
        if not self.cancelled:
            self.cancelled = True
            self.deliver(error)


class Answer:
    """One answer while it is made. The answer k of an order draws as the prompt k of `generate` does."""

    def __init__(self, order: Order, index: int, tokenizer: Tokenizer, stop_ids: frozenset[int]) -> None:
        self.order, self.prompt = order, tuple(order.prompt)
        self.index = order.first + index
        self.stop_ids = frozenset() if order.ignore_eos else stop_ids
        self.tokens: list[int] = []
        self.reason: Reason | None = None
        self.text, self.finder = GrowingText(tokenizer, order.shown), StopFinder[Said](order.stops)
        self.constraint = order.constraint() if order.constraint is not None else None
        self.draws: Tensor | None = None
        if order.sampling.temperature > 0:
            self.draws = row_draws((self.index,), order.sampling.max_new_tokens, order.sampling)

    @property
    def is_over(self) -> bool:
        return self.reason is not None or self.order.cancelled

    def chooser(self, width: int) -> Chooser:
        draw = None if self.draws is None else self.draws[len(self.tokens)]
        allowed = None if self.constraint is None else self.constraint.allowed(width)
        return Chooser(self.order.sampling, draw, self.order.prompt, self.tokens, allowed)

    def take(self, said: Said) -> None:
        """Go on with a token, and tell what it brings."""
        self.tokens.append(said.token)
        full = len(self.tokens) >= self.order.sampling.max_new_tokens
        if said.token in self.stop_ids:
            self.reason = "stop"
            text, marks = "", []
        else:
            text, marks = self.finder.add(self.text.add(said.token), said)
            complete = self.constraint.take(said.token) if self.constraint is not None else False
            if self.finder.found or complete:
                self.reason = "stop"
            elif full:
                self.reason = "length"
        if self.reason is not None and not self.finder.found:
            rest, more = self.finder.end(self.text.end())
            text, marks = text + rest, [*marks, *more]
            self.reason = "stop" if self.finder.found else self.reason
        wanted = marks and self.order.logprobs is not None
        if text or wanted or self.reason is not None:
            self.order.deliver(Piece(self.index, text, tuple(marks), len(self.tokens), self.reason))


def advance(logits: Float[Tensor, "B V"], live: Sequence[Answer]) -> list[int]:
    """Choose the next token of every answer and tell it; an order that fails ends alone, with any token."""
    finite = torch.isfinite(logits).all(-1).tolist()
    fine: list[int] = []
    choosers: list[Chooser] = []
    for at, answer in enumerate(live):
        try:
            if not finite[at]:
                raise not_finite()
            choosers.append(answer.chooser(logits.shape[-1]))
            fine.append(at)
        except Exception as error:
            answer.order.fail(as_told(error))
    picked = [0] * len(live)
    own = logits if len(fine) == len(live) else logits[torch.tensor(fine, dtype=torch.long, device=logits.device)]
    for at, said in zip(fine, chosen(own, choosers, [live[at] for at in fine]), strict=True):
        if said is None:
            continue
        picked[at] = said.token
        try:
            live[at].take(said)
        except Exception as error:
            live[at].order.fail(as_told(error))
    return picked


def chosen(logits: Float[Tensor, "B V"], rows: Sequence[Chooser], live: Sequence[Answer]) -> list[Said | None]:
    """What every row goes on with. Where choosing for all fails each row is tried alone, and its order ends (None)."""
    try:
        return [*told(logits, checked(choose_each(logits, rows), logits.shape[-1]), live)]
    except Exception as error:
        if len(rows) == 1:
            live[0].order.fail(as_told(error))
            return [None]
    alone = range(len(rows))
    return [said for at in alone for said in chosen(logits[at : at + 1], rows[at : at + 1], live[at : at + 1])]


def checked(tokens: Sequence[int], width: int) -> Sequence[int]:
    """An id beyond the embedding would be an error of the next step, which is everybody's."""
    if not all(0 <= token < width for token in tokens):
        raise IndexError(f"chosen: {tokens}, of {width} tokens")
    return tokens


def as_told(error: Exception) -> TunesmithError:
    """What whoever ordered hears of it; the traceback of what is no error of theirs stays in the log."""
    if isinstance(error, TunesmithError):
        return error
    LOG.error("an answer failed", exc_info=error)
    return NumericalError(
        "E550",
        f"the next token of this answer could not be chosen ({type(error).__name__}); other answers go on",
        fixes=["ask again with temperature 0 and without penalties, logit_bias or schema"],
    )


def told(logits: Float[Tensor, "B V"], tokens: Sequence[int], live: Sequence[Answer]) -> list[Said]:
    """The chosen tokens, with log-probabilities where they were asked for."""
    found = [Said(token) for token in tokens]
    asked = [at for at, answer in enumerate(live) if answer.order.logprobs is not None]
    for at in asked:
        logprobs = logits[at].float().log_softmax(-1)
        count = min(live[at].order.logprobs or 0, len(logprobs))
        values, ids = logprobs.topk(count)
        likeliest = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        found[at] = Said(tokens[at], float(logprobs[tokens[at]]), likeliest)
    return found


@dataclass(frozen=True, slots=True)
class Speaker:
    """A model as orders need it: what ends its answers, and how long prompt and answer may be together."""

    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    context: int
