"""A request becomes orders: prompt, settings, room in the context, what the answer must be."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.rollout.choosing import Sampling
from tunesmith.rollout.orders import Constraint, Deliver, Order
from tunesmith.rollout.scheduler import pages_of
from tunesmith.serve.grammar import Grammar
from tunesmith.serve.house import Writer
from tunesmith.serve.refusals import Refusal
from tunesmith.serve.replies import ChatReply, CompletionReply, Envelope, Reply
from tunesmith.serve.settings import Limits
from tunesmith.serve.tools import CallFinder, Style, call_grammar, mark_ids, offered, style_of
from tunesmith.serve.wire import Asked, ChatAsked, CompletionAsked, Tool

TOKEN = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is ordered of a model, and the shape of the reply."""

    make: Callable[[Deliver], list[Order]]
    reply: Reply
    choices: int
    usage: bool  # whether a stream ends with what was used


def prepare_chat(asked: ChatAsked, writer: Writer, limits: Limits) -> Prepared:
    """Renders the template and reads the schema: work for a thread of its own."""
    tools = offered(asked)
    style = style_of(writer.tokenizer) if tools else None
    messages = [turn.message() for turn in asked.messages]
    prompt = writer.tokenizer.prompt_ids(messages, [tool.to_json() for tool in tools])
    room = asked.max_completion_tokens or asked.max_tokens
    check_some(prompt, "messages")
    sampling = sampling_of(asked, writer, prompt, room, limits)
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    if asked.top_logprobs is not None and not asked.logprobs:
        raise Refusal("E411", "top_logprobs come with logprobs", field="top_logprobs", fix="add logprobs: true")
    constraint = constraint_of(asked, writer, tools, style)
    count = choices_of(asked, 1, limits)
    names = [tool.function.name for tool in tools]
    finders = None if style is None else [CallFinder(style, names) for _ in range(count)]
    envelope = Envelope("chat.completion", asked.model, len(prompt), writer.tokenizer)
    shown = frozenset() if style is None else frozenset(mark_ids(writer.tokenizer, style).values())
    common = Common(asked, sampling, count, logprobs, constraint, shown)
    common.check(prompt, writer)
    return Prepared(
        lambda deliver: [common.order(prompt, 0, deliver)],
        ChatReply(envelope, finders, logprobs is not None),
        count,
        wants_usage(asked),
    )


def prepare_completion(asked: CompletionAsked, writer: Writer, limits: Limits) -> Prepared:
    prompts = prompts_of(asked, writer)
    count = choices_of(asked, len(prompts), limits)
    for at, prompt in enumerate(prompts):
        check_some(prompt, f"prompt.{at}" if len(prompts) > 1 else "prompt")
    commons = [
        Common(asked, sampling_of(asked, writer, prompt, asked.max_tokens or 16, limits), count, asked.logprobs, None)
        for prompt in prompts
    ]
    for common, prompt in zip(commons, prompts, strict=True):
        common.check(prompt, writer)
    envelope = Envelope("text_completion", asked.model, sum(map(len, prompts)), writer.tokenizer)

    def make(deliver: Deliver) -> list[Order]:
        both = enumerate(zip(commons, prompts, strict=True))
        return [common.order(prompt, at * count, deliver) for at, (common, prompt) in both]

    reply = CompletionReply(envelope, asked.logprobs is not None)
    return Prepared(make, reply, count * len(prompts), wants_usage(asked))


@dataclass(frozen=True, slots=True)
class Common:
    """What the orders of one prompt share."""

    asked: Asked
    sampling: Sampling
    count: int
    logprobs: int | None
    constraint: Callable[[], Constraint] | None
    shown: frozenset[int] = frozenset()

    def order(self, prompt: Sequence[int], first: int, deliver: Deliver) -> Order:
        return Order(
            self.asked.model,
            prompt,
            self.sampling,
            deliver,
            self.count,
            first,
            self.asked.stops,
            self.logprobs,
            self.asked.ignore_eos,
            self.constraint,
            self.shown,
        )

    def check(self, prompt: Sequence[int], writer: Writer) -> None:
        """Refusal E414 for an order that the cache can never hold."""
        if writer.pages and pages_of(self.order(prompt, 0, lambda _: None)) > writer.pages:
            raise Refusal(
                "E414",
                f"{self.count} answers of {self.sampling.max_new_tokens:,} tokens do not fit the server's cache",
                field="max_tokens",
                fix="ask for fewer or shorter answers, or start the server with a larger --cache-gib",
            )


def check_some(prompt: Sequence[int], field: str) -> None:
    """Refusal E414 for a prompt without a token."""
    if prompt:
        return
    if field == "messages":
        message, fix = "the chat template makes nothing of these messages", "give a message with content"
    else:
        message, fix = f"{field} is empty: there is nothing to go on from", "give some text, or leave the entry out"
    raise Refusal("E414", message, field=field, fix=fix)


def sampling_of(asked: Asked, writer: Writer, prompt: Sequence[int], room: int | None, limits: Limits) -> Sampling:
    """With the room that is left behind the prompt. Refusal E414 when the prompt fills the context."""
    left = writer.speaker.context - len(prompt)
    if left < 1:
        raise Refusal(
            "E414",
            f"the prompt has {len(prompt):,} tokens; the model takes 1 to {writer.speaker.context - 1:,}",
            field="messages" if isinstance(asked, ChatAsked) else "prompt",
            fix="shorten the prompt, or leave out its oldest turns",
        )
    if room is not None and room > left:
        field = "max_tokens" if asked.max_tokens is not None else "max_completion_tokens"
        message = f"{len(prompt):,} tokens of prompt and {room:,} of answer are more than {writer.speaker.context:,}"
        raise Refusal("E414", message, field=field, fix=f"ask for at most {left:,}")
    return Sampling(
        min(room or limits.new_tokens, left),
        1.0 if asked.temperature is None else asked.temperature,
        asked.top_p or 1.0,
        secrets.randbits(63) if asked.seed is None else asked.seed % 2**63,
        max(asked.top_k or 0, 0),
        asked.min_p or 0.0,
        asked.presence_penalty or 0.0,
        asked.frequency_penalty or 0.0,
        asked.repetition_penalty or 1.0,
        bias_of(asked, writer),
    )


def bias_of(asked: Asked, writer: Writer) -> tuple[tuple[int, float], ...]:
    width = writer.grammars.width
    found = []
    for token, added in (asked.logit_bias or {}).items():
        if not TOKEN.fullmatch(token) or int(token) >= width:
            message = f"{token[:40]!r} is no token of this model"
            raise Refusal("E411", message, field="logit_bias", fix=f"give ids from 0 to {width - 1}")
        found.append((int(token), added))
    return tuple(found)


def choices_of(asked: Asked, prompts: int, limits: Limits) -> int:
    count = asked.n or 1
    most = min(limits.choices, limits.batch_size)
    if count > most or count * prompts > limits.choices:
        raise Refusal("E411", f"{count * prompts} answers are more than {most}", field="n", fix="ask for fewer")
    return count


def wants_usage(asked: Asked) -> bool:
    return asked.stream_options is not None and asked.stream_options.include_usage


def prompts_of(asked: CompletionAsked, writer: Writer) -> list[list[int]]:
    """Ids of every prompt; texts get what stands before every text of the model."""
    given: Any = asked.prompt
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    tokenizer = writer.tokenizer
    prompts: list[list[int]] = []
    for each in given:
        ids = [*tokenizer.start_ids, *tokenizer.encode(each, specials=True)] if isinstance(each, str) else list(each)
        if any(not 0 <= token < writer.grammars.width for token in ids):
            fix = f"give ids from 0 to {writer.grammars.width - 1}"
            raise Refusal("E411", "a prompt holds an id that is no token of this model", field="prompt", fix=fix)
        prompts.append(ids)
    if not prompts:
        raise Refusal("E411", "there is no prompt", field="prompt", fix="give one")
    return prompts


def constraint_of(
    asked: ChatAsked, writer: Writer, tools: Sequence[Tool], style: Style | None
) -> Callable[[], Constraint] | None:
    """What holds the answer to a schema or to a call; None where it is free."""
    form = asked.response_format
    must_call = style is not None and asked.tool_choice not in (None, "auto")
    if must_call and style is not None:
        matcher = writer.grammars.for_call(call_grammar(tools, style, mark_ids(writer.tokenizer, style)))
    elif form is None or form.type == "text":
        return None
    elif form.type == "json_object":
        matcher = writer.grammars.for_schema({"type": "object"}, "response_format")
    elif form.json_schema is None:
        raise Refusal("E411", "there is no schema", field="response_format.json_schema", fix="give json_schema.schema")
    else:
        matcher = writer.grammars.for_schema(form.json_schema.schema_, "response_format.json_schema.schema")
    return lambda: Grammar(matcher.deep_copy())
