"""What a benchmark asks of a model: how likely continuations and whole texts are, and what it writes up to a stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
from torch import nn

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import DataError, UsageError, Where
from tunesmith.evaluate.choices import MICROBATCH_TOKENS, Likelihood, likelihoods_of
from tunesmith.rollout.config import Held
from tunesmith.rollout.generator import Sampling, context_length, generate
from tunesmith.types import Example, Message, Role

UNKNOWN_CONTEXT = 2048  # of models that do not say how long a context they take
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is given counts
USUAL_LENGTH = 256
SHORTEST = 3  # tokens that answers must have in common to be worth a segment
KNOWN = {*LENGTHS, "until", "do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"}
IDLE = {"num_beams": 1, "use_cache": True, "num_return_sequences": 1, "early_stopping": False}  # settings of no effect

Progress = Callable[[int, int], None]
Piece = tuple[list[int], list[int]]  # tokens that are given, and those that are predicted behind them


@dataclass(frozen=True, slots=True)
class Respondent:
    """A model as benchmarks see it: texts go in, figures and texts come out.

    Tokens are those of the harness's own `hf` backend, so that the figures are: a text begins with what the tokenizer
    puts before any, control tokens in it count as such, and a context that is too long loses its beginning.
    """

    model: nn.Module
    tokenizer: Tokenizer
    batch_size: int = 32
    held: Held = "packed"

    @property
    def longest(self) -> int:
        length = context_length(self.model)
        return length if length < 2**30 else UNKNOWN_CONTEXT

    @property
    def first(self) -> int:
        """What stands before a text that has nothing before it."""
        known = (self.tokenizer.bos_id, self.tokenizer.eos_id)
        return next((one for one in known if one is not None), 0)

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, behind what the tokenizer starts with unless the text does."""
        own = self.tokenizer.encode(text, specials=True)
        begun = text.startswith(self.tokenizer.decode([self.first]))
        return own if begun else [*self.tokenizer.start_ids, *own]

    def likelihoods(
        self, pairs: Sequence[tuple[str, str]], on_progress: Progress | None = None
    ) -> list[tuple[float, bool]]:
        """Of every continuation behind its context the log-probability, and whether the model would write it.

        A context is computed once for all its continuations, and what contexts begin with for as many as fit a batch.
        """
        known: dict[str, list[int]] = {}
        pieces = [self.split(context, continuation, known) for context, continuation in pairs]
        return [(one.logprob, one.greedy) for one in self.score(pieces, on_progress)]

    def rolling(self, texts: Sequence[str], on_progress: Progress | None = None) -> list[float]:
        """The log-probability of every text; each token is predicted once, from as much before it as a window holds."""
        windows = [list(self.windows(text)) for text in texts]
        examples = [Tree.of([tuple(behind)]).example(before) for pieces in windows for before, behind in pieces]
        scored = iter(likelihoods_of(self.model, examples, on_progress))
        return [float(sum(next(scored)[0].logprob for _ in pieces)) for pieces in windows]

    def write(self, asked: Sequence[tuple[str, Mapping[str, Any]]], on_progress: Progress | None = None) -> list[str]:
        """What the model writes behind every context, up to the first of the texts in `until`.

        UsageError E471 for settings that Tunesmith cannot follow.
        """
        groups: dict[Sampling, list[int]] = {}
        for place, (_, settings) in enumerate(asked):
            groups.setdefault(sampling_of(settings), []).append(place)
        made, before = [""] * len(asked), 0
        for sampling, places in groups.items():
            prompts = [self.prompt(asked[place][0], sampling) for place in places]
            done = before

            def heard(count: int, _: int, done: int = done) -> None:
                if on_progress is not None:
                    on_progress(done + count, len(asked))

            asking = (self.model, self.tokenizer, prompts, sampling)
            found = generate(*asking, batch_size=self.batch_size, on_progress=heard, held=self.held)
            for place, one in zip(places, found, strict=True):
                made[place] = cut(one.text, sampling.until)
            before += len(places)
        return made

    def chat(self, turns: Sequence[Mapping[str, str]], *, asks: bool = True) -> str:
        """The turns as the model's template writes them; without `asks` the last one is left open, to be continued."""
        messages = [Message(cast("Role", turn["role"]), turn["content"]) for turn in turns]
        text = self.tokenizer.render(messages, add_generation_prompt=asks)
        if asks:
            return text
        last = messages[-1].content.strip()
        return text[: text.rindex(last) + len(last)] if last in text else text

    def split(self, context: str, continuation: str, known: dict[str, list[int]]) -> Piece:
        """Both as tokens: the continuation's are those that stand behind the context's in the whole."""
        if not context:
            ids = self.tokenizer.encode(continuation, specials=True)
            return ([self.first], ids) if ids[:1] != [self.first] else (ids[:1], ids[1:])
        bare = context.rstrip()
        if bare not in known:
            known[bare] = self.ids(bare)
        before = known[bare]
        behind = self.ids(context + continuation)[len(before) :]
        if not behind or not before:
            raise nothing_to_predict(context, continuation)
        return before, behind

    def windows(self, text: str) -> Iterator[Piece]:
        """A text in pieces of which each predicts tokens that no other does; the last one has a full context."""
        ids, size = self.ids(text), self.longest
        yield from ([([self.first], ids[:size])] if ids else [])
        for start in range(size, len(ids), size):
            end = min(start + size, len(ids))
            yield ids[end - size - 1 : start], ids[start:end]

    def score(self, pieces: Sequence[Piece], on_progress: Progress | None) -> list[Likelihood]:
        """Of every piece the likelihood of what is predicted; equal pieces and equal contexts are computed once.

        Answers to one context that are too many for a batch are put into several.
        """
        groups: dict[tuple[tuple[int, ...], int], dict[tuple[int, ...], Likelihood | None]] = {}
        places: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}  # of each piece: which of these of its context
        order: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        sizes: Counter[tuple[int, ...]] = Counter()
        for before, behind in pieces:
            room = self.longest + 1 - len(behind)
            if room < 1:
                raise too_long(len(behind), self.longest)
            context, answer = tuple(before[-room:]), tuple(behind)
            order.append((context, answer))
            if order[-1] not in places:
                places[order[-1]] = sizes[context] // MICROBATCH_TOKENS
                sizes[context] += len(answer)
                groups.setdefault((context, places[order[-1]]), {})[answer] = None
        trees = [Tree.of(list(answers)) for answers in groups.values()]
        examples = [tree.example(context) for (context, _), tree in zip(groups, trees, strict=True)]
        scored = likelihoods_of(self.model, examples, on_progress)
        for answers, tree, likely in zip(groups.values(), trees, scored, strict=True):
            answers.update(zip(answers, tree.sums(likely), strict=True))
        found = [groups[context, places[context, answer]][answer] for context, answer in order]
        return [one for one in found if one is not None]

    def prompt(self, context: str, sampling: Sampling) -> list[int]:
        room = self.longest - sampling.max_new_tokens
        if room < 1:
            raise too_long(sampling.max_new_tokens, self.longest)
        return self.ids(context)[-room:] or [self.first]


@dataclass(slots=True)
class Tree:
    """Answers to one context, beginnings that several have in common once. `paths`: the segments of each answer."""

    answers: list[tuple[int, ...]]
    segments: list[tuple[int, ...]] = field(default_factory=list)
    stems: list[int] = field(default_factory=list)
    paths: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, answers: list[tuple[int, ...]]) -> Tree:
        tree = cls(answers)
        tree.grow(sorted(range(len(answers)), key=lambda at: answers[at]), 0, [])
        return tree

    def grow(self, order: Sequence[int], depth: int, path: list[int]) -> None:
        """Segments for these answers, in their order as texts, below the `depth` tokens that `path` holds."""
        common = [alike(self.answers[one], self.answers[other]) for one, other in pairwise(order)]
        start = 0
        for end in range(1, len(order) + 1):
            if end < len(order) and common[end - 1] >= depth + SHORTEST:
                continue
            run, last = order[start:end], len(self.answers[order[start]])
            reach = min(common[start : end - 1], default=last)
            own = self.answers[run[0]][depth:reach]
            below = [*path, len(self.segments)] if own else path
            if own:
                self.segments.append(own)
                self.stems.append(path[-1] if path else -1)
            if len(run) == 1:
                self.paths[run[0]] = below
            else:
                self.grow(run, reach, below)
            start = end

    def example(self, before: Sequence[int]) -> Example:
        tokens = np.array([*before, *(token for one in self.segments for token in one)], dtype=np.int32)
        weights = np.ones(len(tokens), dtype=np.float32)
        weights[: len(before)] = 0
        ends = np.cumsum([len(before), *map(len, self.segments)])
        cuts = tuple(int(end) for end in ends[:-1])
        return Example(tokens, weights, "request", 1, cuts, stems=tuple(self.stems))

    def sums(self, likely: Sequence[Likelihood]) -> list[Likelihood]:
        """Of every answer, from those of its segments."""
        found = [[likely[at] for at in self.paths[place]] for place in range(len(self.answers))]
        return [
            Likelihood(
                sum(one.logprob for one in path), sum(one.tokens for one in path), all(one.greedy for one in path)
            )
            for path in found
        ]


def alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens are equal."""
    places = (at for at, (mine, yours) in enumerate(zip(one, other, strict=False)) if mine != yours)
    return next(places, min(len(one), len(other)))


def sampling_of(settings: Mapping[str, Any]) -> Sampling:
    """The generation settings of a task; greedy unless they ask for a temperature."""
    odd = {key: value for key, value in settings.items() if key not in KNOWN and IDLE.get(key, value) != value}
    odd |= {key: value for key, value in settings.items() if key not in KNOWN and key not in IDLE}
    if odd:
        raise UsageError(
            "E471",
            f"the task generates with {', '.join(sorted(odd))}, which Tunesmith does not know",
            where=Where(field="generation_kwargs"),
            evidence=[f"known: {', '.join(sorted(KNOWN))}"],
            fixes=["take these keys out of the task's generation_kwargs, in a task file of your own"],
        )
    until = settings.get("until") or []
    warm = settings.get("do_sample") is not False
    usual = 1.0 if settings.get("do_sample") else 0.0
    length = next((settings[key] for key in LENGTHS if settings.get(key) is not None), USUAL_LENGTH)
    plain = Sampling(int(length), until=tuple(one for one in ([until] if isinstance(until, str) else until) if one))
    temperature = float(settings.get("temperature") or usual) if warm else 0.0
    if temperature == 0:
        return replace(plain, repetition=float(settings.get("repetition_penalty") or 1.0))
    return replace(
        plain,
        temperature=temperature,
        top_p=float(settings.get("top_p") or 1.0),
        top_k=int(settings.get("top_k") or 0),
        min_p=float(settings.get("min_p") or 0.0),
        repetition=float(settings.get("repetition_penalty") or 1.0),
    )


def cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        text = text.split(stop)[0]
    return text


def nothing_to_predict(context: str, continuation: str) -> DataError:
    return DataError(
        "E470",
        "a continuation has no tokens of its own behind its context, so it has no likelihood",
        evidence=[f"context ends with {context[-60:]!r}", f"continuation {continuation[:60]!r}"],
        fixes=["give every choice a text; choices usually begin with a space"],
    )


def too_long(tokens: int, room: int) -> DataError:
    return DataError(
        "E470",
        f"{tokens} tokens are to be predicted at once, and the model's context has {room}",
        fixes=["a model with a longer context", "shorter answers: max_gen_toks of the task, or --max-new-tokens"],
    )
