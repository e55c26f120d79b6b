"""Text from a model: batched decoding by the engine or with transformers' cache."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import ModelError
from tunesmith.models.forward import base_model
from tunesmith.models.prompts import positions_taken
from tunesmith.rollout.beginning import begin, forward, in_groups
from tunesmith.rollout.choosing import Chooser, Sampling, check_finite, choose_each, row_draws
from tunesmith.rollout.config import Held
from tunesmith.rollout.continuous import Asked, Live, answers
from tunesmith.rollout.decoding import decoding
from tunesmith.rollout.engine.engine import Engine, check_held, serves
from tunesmith.rollout.text import GrowingText

COMPACT_AT = 0.75  # live share of a batch below which the finished rows are dropped from the cache

Progress = Callable[[int, int], None]
Pick = Callable[[Float[Tensor, "B V"], Sequence[int]], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Generated:
    """One answer: `tokens` ends with the stop token when `finished`; `text` is without special tokens."""

    text: str
    tokens: tuple[int, ...]
    finished: bool


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to make: the index of the prompt that it continues, and the name that seeds its draws."""

    prompt: int
    name: tuple[int, ...]


def generate(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    batch_size: int = 32,
    on_progress: Progress | None = None,
    on_token: Callable[[], None] | None = None,
    held: Held = "packed",
) -> list[Generated]:
    """One answer per prompt, in order; prompts of like length are decoded together.

    Prompt i draws from its own generator, seeded by (seed, i), so its answer does not depend on its neighbours.
    `on_progress` hears (finished prompts, all prompts), `on_token` every token. `held`: "shared" needs no memory for a
    second copy of the weights; "int8" is faster, and not exact. ModelError E150: a prompt is empty or fills the
    context; E428: there are no products in 8 bits here.
    """
    requests = [Request(index, (index,)) for index in range(len(prompts))]
    found: dict[int, Generated] = {}
    for place, answer in complete(model, tokenizer, prompts, requests, sampling, batch_size, on_token, held):
        found[place] = answer
        if on_progress is not None:
            on_progress(len(found), len(prompts))
    return [found[index] for index in range(len(prompts))]


def complete(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    requests: Sequence[Request],
    sampling: Sampling,
    batch_size: int = 32,
    on_token: Callable[[], None] | None = None,
    held: Held = "packed",
) -> Iterator[tuple[int, Generated]]:
    """The place of each request and its answer, as answers end; the longest prompts come first.

    A prompt that several requests of a batch continue is computed once for all of them. `on_token` is called at every
    token, so that long answers are no reason for silence.
    """
    check_prompts(model, prompts)

    def longest_first(place: int) -> tuple[int, int]:
        return -len(prompts[requests[place].prompt]), requests[place].prompt

    order = sorted(range(len(requests)), key=longest_first)
    tokens: list[list[int]] = [[] for _ in requests]
    with decoding(model) as view:
        check_held(view, held)
        stops = stop_ids(base_model(view), tokenizer)
        call = Call(prompts, requests, sampling, stops, batch_size, context_length(view))
        for place, token, ends in by_engine(view, call, order, held) if serves(view) else by_cache(view, call, order):
            tokens[place].append(token)
            if on_token is not None:
                on_token()
            if not ends and sampling.until and stops_in(tokenizer, tokens[place], sampling.until):
                call.done.add(place)
                ends = True
            if ends:
                yield place, finish(tokenizer, tokens[place], stops)


@dataclass(frozen=True, slots=True)
class Call:
    """What is to be answered, and how; `draws` are those of the answers that have begun, `done` those that are over."""

    prompts: Sequence[Sequence[int]]
    requests: Sequence[Request]
    sampling: Sampling
    stops: frozenset[int]
    batch_size: int
    context: int
    draws: dict[int, Tensor] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)

    def room(self, place: int) -> int:
        return min(self.sampling.max_new_tokens, self.context - len(self.prompt(place)))

    def prompt(self, place: int) -> Sequence[int]:
        return self.prompts[self.requests[place].prompt]

    def chooser(self, place: int, made: Sequence[int]) -> Chooser:
        """What chooses the next token of the answer at this place."""
        draw = None
        if self.sampling.temperature > 0:
            if not made:
                self.draws[place] = row_draws(self.requests[place].name, self.room(place), self.sampling)
            draw = self.draws[place][len(made)]
        return Chooser(self.sampling, draw, self.prompt(place), made)


def by_engine(view: nn.Module, call: Call, order: Sequence[int], held: Held) -> Iterator[tuple[int, int, bool]]:
    """(place of the request, token, whether its answer ends here), from the engine, whose batch stays full."""
    asked = [Asked(at, call.requests[at].prompt, call.room(at)) for at in order]

    def pick(logits: Float[Tensor, "B V"], live: Sequence[Live[int]]) -> list[int]:
        check_finite(logits)
        return choose_each(logits, [call.chooser(each.asked.name, each.tokens) for each in live])

    yield from answers(Engine(view, held), call.prompts, asked, pick, call.stops, call.batch_size, call.done)


def by_cache(view: nn.Module, call: Call, order: Sequence[int]) -> Iterator[tuple[int, int, bool]]:
    """The same from transformers' layers and cache, one batch after the other."""
    lengths = [len(call.prompts[request.prompt]) for request in call.requests]
    for places in in_groups(view, order, lengths, call.batch_size):
        made: dict[int, list[int]] = {place: [] for place in places}

        def pick(logits: Float[Tensor, "B V"], rows: Sequence[int]) -> list[int]:
            check_finite(logits)
            return choose_each(logits, [call.chooser(places[row], made[places[row]]) for row in rows])  # noqa: B023

        done: set[int] = set()
        asked = [call.requests[place].prompt for place in places]
        for row, token in steps(view, call.prompts, asked, max(map(call.room, places)), pick, done):
            place = places[row]
            made[place].append(token)
            ends = token in call.stops or len(made[place]) == call.room(place)
            yield place, token, ends
            if ends or place in call.done:
                done.add(row)


def detokenise(tokenizer: Tokenizer, tokens: Iterator[int]) -> Iterator[str]:
    """Text of a growing token list; what ends in an unfinished character waits for its remaining bytes."""
    text = GrowingText(tokenizer)
    for token in tokens:
        if piece := text.add(token):
            yield piece
    if rest := text.end():
        yield rest


def stops_in(tokenizer: Tokenizer, tokens: Sequence[int], until: Sequence[str]) -> bool:
    """Whether one of the texts, control tokens included, ends in the newest tokens."""
    longest = max(len(text.encode("utf-8")) for text in until)  # a token has a byte or more
    text = tokenizer.decode(tokens[-longest - 3 :])
    return any(one in text for one in until)


def finish(tokenizer: Tokenizer, tokens: list[int], stops: frozenset[int]) -> Generated:
    finished = bool(tokens) and tokens[-1] in stops
    body = tokens[:-1] if finished else tokens
    return Generated(tokenizer.decode(body, skip_special=True), tuple(tokens), finished)


def stop_ids(model: PreTrainedModel, tokenizer: Tokenizer) -> frozenset[int]:
    """Every token that ends an answer: the tokenizer's and the generation config's."""
    configured = None if model.generation_config is None else model.generation_config.eos_token_id
    extra = [configured] if isinstance(configured, int) else list(configured or [])
    return frozenset([*tokenizer.eos_ids, *extra])


def context_length(model: nn.Module) -> int:
    """Places for tokens; those of a learned prompt are taken."""
    config = base_model(model).config.get_text_config(decoder=True)
    return int(config.to_dict().get("max_position_embeddings") or 2**31) - positions_taken(model)


def check_prompts(model: nn.Module, prompts: Sequence[Sequence[int]]) -> None:
    context = context_length(model)
    for index, prompt in enumerate(prompts):
        if not prompt:
            message = f"prompt {index + 1} is empty: there is nothing to answer"
            raise ModelError("E150", message, fixes=["give it some text, or leave it out"])
        if len(prompt) >= context:
            raise ModelError(
                "E150",
                f"prompt {index + 1} has {len(prompt)} tokens; the model takes 1 to {context - 1} and then answers",
                fixes=["shorten the prompt, or leave out its oldest turns"],
            )


@torch.no_grad()
def steps(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    asked: Sequence[int],
    room: int,
    pick: Pick,
    done: Container[int],
) -> Iterator[tuple[int, int]]:
    """Decode one batch: yields (row, token) in step order; row i continues the prompt `asked[i]`.

    `pick` chooses the next tokens of the rows that it is given; rows that the caller puts among `done` end, and after
    `room` tokens all do.
    """
    base = base_model(model)
    chosen = list(dict.fromkeys(asked))  # each prompt once
    owner = torch.tensor([chosen.index(prompt) for prompt in asked], device=base.device)
    begun = begin(model, [prompts[index] for index in chosen], room)
    cache, logits, mask, positions, width = begun.cache, begun.logits, begun.mask, begun.positions, begun.width
    if len(chosen) < len(asked):
        cache.batch_select_indices(owner)
        logits, positions = logits[owner], positions[owner]
        mask = None if mask is None else mask[owner]
    rows = list(range(len(asked)))  # the request that each row of the cache belongs to
    live = list(rows)  # the rows of the cache that go on
    last = context_length(model) + positions_taken(model) - 1  # where rows that are done may wait for their batch
    for step in range(room):
        picked = torch.zeros(len(rows), dtype=torch.long)
        tokens = pick(logits if len(live) == len(rows) else logits[live], [rows[at] for at in live])
        picked[live] = torch.tensor(tokens)
        picked = picked.to(base.device)
        for at, token in zip(live, tokens, strict=True):
            yield rows[at], token
        live = [at for at in live if rows[at] not in done]
        if not live or step + 1 == room:
            return
        positions = (positions[:, -1:] + 1).clamp_(max=last)
        if len(live) <= COMPACT_AT * len(rows):
            keep = torch.tensor(live, device=base.device)
            cache.batch_select_indices(keep)
            picked, positions = picked[keep], positions[keep]
            mask = None if mask is None else mask[keep]
            rows, live = [rows[at] for at in live], list(range(len(live)))
        seen = None if mask is None else mask[:, : width + step + 1]
        logits = forward(base, cache, picked[:, None], positions, seen)
