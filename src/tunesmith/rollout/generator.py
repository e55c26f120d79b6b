"""Text from a model: batched decoding by the engine or with transformers' cache, and streaming for chat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import ModelError, NumericalError
from tunesmith.models.forward import base_model
from tunesmith.models.prompts import positions_taken
from tunesmith.rollout.beginning import begin, forward, in_groups
from tunesmith.rollout.continuous import Asked, Live, answers
from tunesmith.rollout.decoding import decoding
from tunesmith.rollout.engine.engine import Engine, serves
from tunesmith.rollout.engine.matrices import Held

COMPACT_AT = 0.75  # live share of a batch below which the finished rows are dropped from the cache
TOP = 512  # most likely tokens looked at first; only a flatter distribution is sorted whole

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Generated:
    """One answer: `tokens` ends with the stop token when `finished`; `text` is without special tokens."""

    text: str
    tokens: tuple[int, ...]
    finished: bool


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; temperature 0 takes the most likely one."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


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
    held: Held = "packed",
) -> list[Generated]:
    """One answer per prompt, in order; prompts of like length are decoded together.

    Prompt i draws from its own generator, seeded by (seed, i), so its answer does not depend on its neighbours.
    `on_progress` hears (finished prompts, all prompts). `held`: "shared" needs no memory for a second copy of the
    weights; "int8" is faster, and not exact. ModelError E150: a prompt is empty or fills the context.
    """
    requests = [Request(index, (index,)) for index in range(len(prompts))]
    found: dict[int, Generated] = {}
    for place, answer in complete(model, tokenizer, prompts, requests, sampling, batch_size, held=held):
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
        stops = stop_ids(base_model(view), tokenizer)
        call = Call(prompts, requests, sampling, stops, batch_size)
        for place, token, ends in by_engine(view, call, order, held) if serves(view) else by_cache(view, call, order):
            tokens[place].append(token)
            if on_token is not None:
                on_token()
            if ends:
                yield place, finish(tokenizer, tokens[place], stops)


@dataclass(frozen=True, slots=True)
class Call:
    """What is to be answered, and how."""

    prompts: Sequence[Sequence[int]]
    requests: Sequence[Request]
    sampling: Sampling
    stops: frozenset[int]
    batch_size: int


def by_engine(view: nn.Module, call: Call, order: Sequence[int], held: Held) -> Iterator[tuple[int, int, bool]]:
    """(place of the request, token, whether its answer ends here), from the engine, whose batch stays full."""
    engine, context = Engine(view, held), context_length(view)
    asked = [
        Asked(at, request.prompt, min(call.sampling.max_new_tokens, context - len(call.prompts[request.prompt])))
        for at, request in ((at, call.requests[at]) for at in order)
    ]
    draws: dict[int, Tensor] = {}

    def pick(logits: Float[Tensor, "B V"], live: Sequence[Live[int]]) -> list[int]:
        check_finite(logits)
        chances = None
        if call.sampling.temperature > 0:
            for each in live:
                if not each.tokens:
                    name = call.requests[each.asked.name].name
                    draws[each.asked.name] = row_draws(name, each.asked.room, call.sampling)
            chances = torch.stack([draws[each.asked.name][len(each.tokens)] for each in live])
        return choose(logits, call.sampling, chances).tolist()

    yield from answers(engine, call.prompts, asked, pick, call.stops, call.batch_size)


def by_cache(view: nn.Module, call: Call, order: Sequence[int]) -> Iterator[tuple[int, int, bool]]:
    """The same from transformers' layers and cache, one batch after the other."""
    lengths = [len(call.prompts[request.prompt]) for request in call.requests]
    for places in in_groups(view, order, lengths, call.batch_size):
        chosen = [call.requests[place] for place in places]
        for row, token, ends in steps(view, call.prompts, chosen, call.sampling, call.stops):
            yield places[row], token, ends


def stream(model: nn.Module, tokenizer: Tokenizer, prompt: Sequence[int], sampling: Sampling) -> Iterator[str]:
    """Pieces of one answer as they are decoded; a piece never holds half of a character."""
    check_prompts(model, [prompt])
    requests = [Request(0, (0,))]
    with decoding(model) as view:
        stops = stop_ids(base_model(view), tokenizer)
        call = Call([prompt], requests, sampling, stops, 1)
        made = by_engine(view, call, [0], "packed") if serves(view) else by_cache(view, call, [0])
        yield from detokenise(tokenizer, (token for _, token, _ in made if token not in stops))


def detokenise(tokenizer: Tokenizer, tokens: Iterator[int]) -> Iterator[str]:
    """Text of a growing token list; what ends in an unfinished character waits for its remaining bytes."""
    ids: list[int] = []
    shown, start = 0, 0  # tokens already yielded, and the context before them that decoding needs
    for token in tokens:
        ids.append(token)
        before = tokenizer.decode(ids[start:shown], skip_special=True)
        now = tokenizer.decode(ids[start:], skip_special=True)
        if len(now) > len(before) and not now.endswith("�"):
            yield now[len(before) :]
            start, shown = shown, len(ids)
    before = tokenizer.decode(ids[start:shown], skip_special=True)
    rest = tokenizer.decode(ids[start:], skip_special=True)[len(before) :]
    if rest:
        yield rest


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
        if not 0 < len(prompt) < context:
            raise ModelError(
                "E150",
                f"prompt {index + 1} has {len(prompt)} tokens; the model takes 1 to {context - 1} and then answers",
                fixes=["shorten the prompt, or leave out its oldest turns"],
            )


@torch.no_grad()
def steps(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    requests: Sequence[Request],
    sampling: Sampling,
    stops: frozenset[int],
) -> Iterator[tuple[int, int, bool]]:
    """Decode one batch: yields (row, token, whether the row ends here) in step order; row i answers request i."""
    base = base_model(model)
    context = context_length(model)
    chosen = list(dict.fromkeys(request.prompt for request in requests))  # each prompt once
    owner = torch.tensor([chosen.index(request.prompt) for request in requests], device=base.device)
    room = [min(sampling.max_new_tokens, context - len(prompts[request.prompt])) for request in requests]
    draws = uniform_draws([request.name for request in requests], room, sampling)
    begun = begin(model, [prompts[index] for index in chosen], max(room))
    cache, logits, mask, positions, width = begun.cache, begun.logits, begun.mask, begun.positions, begun.width
    check_finite(logits)
    if len(chosen) < len(requests):
        cache.batch_select_indices(owner)
        logits, positions = logits[owner], positions[owner]
        mask = None if mask is None else mask[owner]
    rows = list(range(len(requests)))  # the request that each row of the cache belongs to
    ended = [False] * len(requests)
    for step in range(max(room)):
        picked = choose(logits, sampling, None if draws is None else draws[rows, step])
        for row, token in zip(rows, picked.tolist(), strict=True):
            if not ended[row]:
                ended[row] = token in stops or step + 1 == room[row]
                yield row, token, ended[row]
        live = [at for at, row in enumerate(rows) if not ended[row]]
        if not live:
            return
        positions = positions[:, -1:] + 1
        if len(live) <= COMPACT_AT * len(rows):
            keep = torch.tensor(live, device=base.device)
            cache.batch_select_indices(keep)
            picked, positions = picked[keep], positions[keep]
            mask = None if mask is None else mask[keep]
            rows = [rows[at] for at in live]
        seen = None if mask is None else mask[:, : width + step + 1]
        logits = forward(base, cache, picked[:, None], positions, seen)


def uniform_draws(
    names: Sequence[tuple[int, ...]], room: Sequence[int], sampling: Sampling
) -> Float[Tensor, "B R"] | None:
    """One uniform number per row and step, from a generator per row; None for greedy decoding."""
    if sampling.temperature == 0:
        return None
    return torch.stack([row_draws(name, max(room), sampling) for name in names])


def row_draws(name: tuple[int, ...], room: int, sampling: Sampling) -> Float[Tensor, " R"]:
    """One uniform number per token of an answer; more room adds numbers behind the same ones."""
    seed = np.random.SeedSequence([sampling.seed, *name]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(seed) % 2**63)
    return torch.rand(room, generator=generator, dtype=torch.float64)


def choose(logits: Float[Tensor, "B V"], sampling: Sampling, draw_B: Float[Tensor, " B"] | None) -> Int[Tensor, " B"]:
    """The most likely token (the lowest id of equals), or the one where the draw falls in the distribution function."""
    logits = logits.float()
    if draw_B is None:
        return logits.max(-1).indices
    probabilities = (logits / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        probabilities = nucleus(probabilities, sampling.top_p)
    sums = probabilities.cumsum(-1)
    total = sums[:, -1:]
    goal = torch.minimum(draw_B.to(sums)[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(sums, goal, right=True)[:, 0]


def nucleus(probabilities: Float[Tensor, "B V"], top_p: float) -> Float[Tensor, "B V"]:
    """Zero outside the fewest tokens that hold `top_p` of the mass (arXiv:1904.09751); equals of the last one stay."""
    count = probabilities.shape[-1]
    tops = probabilities.topk(min(TOP, count)).values
    if (tops.sum(-1) < top_p).any():
        tops = probabilities.sort(-1, descending=True).values
    kept = (tops.cumsum(-1) - tops < top_p).sum(-1, keepdim=True)
    return probabilities.masked_fill(probabilities < tops.gather(-1, kept - 1), 0.0)


def check_finite(logits: Tensor) -> None:
    if not torch.isfinite(logits).all():
        raise NumericalError(
            "E151",
            "the model's predictions are not finite numbers, so it cannot answer",
            fixes=["check the weights: an adapter or checkpoint with NaN was loaded"],
        )
