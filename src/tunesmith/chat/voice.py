"""A model that is ready to answer: what it has read of a conversation is kept, and a turn reads only what is new."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tunesmith.data.tokenizer import Tokenizer, load_tokenizer
from tunesmith.export.opening import ModelSource
from tunesmith.export.shelf import Shelf, base_key
from tunesmith.models.adapters.several import Several
from tunesmith.models.forward import base_model
from tunesmith.rollout.choosing import Chooser, Sampling, check_finite, choose_each, row_draws
from tunesmith.rollout.config import Held
from tunesmith.rollout.decoding import decoding
from tunesmith.rollout.engine.engine import Engine, check_held, serves
from tunesmith.rollout.engine.matrices import Packs
from tunesmith.rollout.engine.pages import Row
from tunesmith.rollout.generator import Call, Request, by_cache, check_prompts, context_length, detokenise, stop_ids

Reason = Literal["stop", "length", "interrupted"]
Name = tuple[int, ...]  # what seeds the draws of an answer, beside the seed


@dataclass(frozen=True, slots=True)
class Spoken:
    """How an answer was made: tokens of the prompt read anew and known from before, tokens made, and seconds."""

    read: int = 0
    kept: int = 0
    made: int = 0
    first_token_s: float = 0.0
    seconds: float = 0.0
    reason: Reason = "interrupted"

    @property
    def tokens_per_second(self) -> float:
        """From the first token on."""
        return (self.made - 1) / (self.seconds - self.first_token_s) if self.made > 1 else 0.0


class Voice:
    """One model. `view` is the module that decodes, put to work by `activate` where several share it.

    Where the engine serves the model, keys and values of what it has read stay; elsewhere a turn reads all of it.
    """

    def __init__(self, name: str, source: ModelSource, tokenizer: Tokenizer, activate: Callable[[], nn.Module]) -> None:
        self.name, self.source, self.tokenizer, self.activate = name, source, tokenizer, activate
        view = activate()
        self.context = context_length(view)
        self.stops = stop_ids(base_model(view), tokenizer)
        self.engine: Engine | None = None
        self.row, self.held = Row(), list[int]()  # what the engine has read, and where it keeps it
        self.spoken = Spoken()

    def answer(self, prompt: Sequence[int], sampling: Sampling, name: Name) -> Generator[str, None, None]:
        """Pieces of an answer as they are decoded; `spoken` then says how, also when the listener stops early.

        ModelError E150: the prompt is empty or fills the context.
        """
        check_prompts(self.activate(), [prompt])
        began = time.monotonic()
        self.spoken = Spoken(read=len(prompt))

        def told() -> Iterator[int]:
            for token in self.tokens(prompt, sampling, name):
                now, last = time.monotonic() - began, self.spoken
                self.spoken = replace(last, made=last.made + 1, first_token_s=last.first_token_s or now, seconds=now)
                if token in self.stops:
                    self.spoken = replace(self.spoken, reason="stop")
                    return
                yield token
            self.spoken = replace(self.spoken, reason="length")

        yield from detokenise(self.tokenizer, told())

    def tokens(self, prompt: Sequence[int], sampling: Sampling, name: Name) -> Iterator[int]:
        room = min(sampling.max_new_tokens, self.context - len(prompt))
        if self.engine is None:
            call = Call([prompt], [Request(0, name)], sampling, self.stops, 1, self.context)
            yield from (token for _, token, _ in by_cache(self.activate(), call, [0]))
            return
        draws = row_draws(name, room, sampling) if sampling.temperature > 0 else None
        logits, made = self.read(self.engine, prompt), list[int]()
        while True:
            check_finite(logits)
            draw = None if draws is None else draws[len(made)]
            token = choose_each(logits[None], [Chooser(sampling, draw, prompt, made)])[0]
            made.append(token)
            yield token
            if token in self.stops or len(made) == room:
                return
            logits = self.remember([token], self.engine.go_on)

    def read(self, engine: Engine, prompt: Sequence[int]) -> Float[Tensor, " V"]:
        """What comes behind a prompt; what it has in common with what was read before is not read again."""
        same = min(common(self.held, prompt), len(prompt) - 1)
        if same >= len(prompt) - same:  # a token that is gone on with takes twice as long as one that is read
            engine.pages.cut(self.row, same)
            self.held = self.held[:same]
            self.spoken = replace(self.spoken, read=len(prompt) - same, kept=same)
            return self.remember(prompt[same:], engine.go_on)
        self.forget()
        (self.row,), logits = engine.read([prompt])
        self.held = list(prompt)
        return logits[0]

    def remember(
        self, tokens: Sequence[int], go_on: Callable[[Row, Sequence[int]], Float[Tensor, " V"]]
    ) -> Float[Tensor, " V"]:
        """What an interruption leaves of the row is not trusted: nothing is held until the row is whole again."""
        held, self.held = self.held, []
        logits = go_on(self.row, tokens)
        self.held = [*held, *tokens]
        return logits

    def forget(self) -> None:
        if self.engine is not None:
            self.engine.release(self.row)
        self.row, self.held = Row(), []


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))


@dataclass(slots=True)
class Voices:
    """Models of a shelf, each ready until `stack` closes; adapters of one base share it, whichever is at work."""

    shelf: Shelf
    stack: ExitStack
    shared: dict[tuple[str, ...], Several] = field(default_factory=dict)
    packs: dict[tuple[str, ...], Packs] = field(default_factory=dict)
    ready: dict[str, Voice] = field(default_factory=dict)
    held: Held = "packed"

    def another(self, name: str) -> Voice:
        """As `open`, of a model that may be new to the shelf, in the place of the others: at no time are there two.

        Adapters of one base stay ready beside each other; a new one lets them go first, so that it can join them when
        they are wanted again. One that cannot be opened leaves nothing behind, but the others are to be opened anew.
        """
        if name in self.ready:
            return self.ready[name]
        new = name not in self.shelf.sources
        if new:
            self.shelf.add(name)
        try:
            source = self.shelf.source(name)
            tokenizer_of(source)
            if new or base_key(source) not in self.shared:
                self.let_go()
            return self.open(name)
        except BaseException:
            if new:
                self.shelf.remove(name)
            raise

    def let_go(self) -> None:
        """Nothing is ready and nothing loaded, where nobody else holds a voice."""
        self.stack.close()
        for kept in (self.shared, self.packs, self.ready):
            kept.clear()
        self.shelf.let_go()
        gc.collect()  # modules point at each other

    def open(self, name: str) -> Voice:
        """ModelError E065, before any weight is loaded, for a model without a chat template.

        E428 for one without products in 8 bits where they are wanted.
        """
        if name not in self.ready:
            self.ready[name] = self.make(name)
        return self.ready[name]

    @torch.no_grad()
    def make(self, name: str) -> Voice:
        source = self.shelf.source(name)
        tokenizer = tokenizer_of(source)
        several = self.view_of_several(source)
        if several is None:
            view = self.stack.enter_context(decoding(self.shelf.open(name).model))
            voice = Voice(name, source, tokenizer, lambda: view)
        else:
            voice = Voice(name, source, tokenizer, lambda: self.shelf.activate(several, name))
        view = voice.activate()
        check_held(view, self.held)
        if serves(view):
            key = base_key(source)
            packs = self.packs.setdefault(key, Packs(self.held)) if several is not None and key is not None else None
            voice.engine = Engine(view, self.held, packs)
        return voice

    def view_of_several(self, source: ModelSource) -> Several | None:
        """The base that a source shares with others, as it decodes, prepared once."""
        several, key = self.shelf.several(source), base_key(source)
        if several is None or key is None:
            return None
        if key not in self.shared:
            view = self.stack.enter_context(decoding(several.model))
            self.shared[key] = replace(several, model=view)  # pyright: ignore[reportArgumentType]
        return self.shared[key]


def tokenizer_of(source: ModelSource) -> Tokenizer:
    """ModelError E065 for one without a chat template."""
    tokenizer = load_tokenizer(source.base, source.settings.new_tokens)
    tokenizer.template()
    return tokenizer
