"""One prompt and its answers, whichever way a record writes them: apart, as whole conversations, or as transcripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tunesmith.data.fields import Fields, Placed
from tunesmith.data.sequences import alpaca_prompt, chat_turns
from tunesmith.data.turns import check_turns, describe, field_error
from tunesmith.errors import DataError
from tunesmith.types import Message, Turns

Given = Placed | str  # turns, or plain text


def read_prompt(fields: Fields) -> Given | None:
    """The prompt that stands apart from the answers; None when the record has none."""
    if fields.has("prompt"):
        value = fields.value("prompt")
        return fields.turns("prompt") if isinstance(value, list) else fields.text("prompt")
    if fields.has("instruction"):
        return alpaca_prompt(fields)
    container = fields.first(("conversations", "messages"))
    return None if container is None else chat_turns(fields, container)


def read_answer(fields: Fields, place: str, value: Any) -> Given:
    """An answer: a text, a turn, or a list of turns."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        ((_, turn),) = fields.placed(place, [value])
        return [(place, turn)]
    if isinstance(value, list):
        return fields.placed(place, value)
    raise field_error(fields.record, place, f"{place} is {describe(value)}; want a text, a turn or a list of turns")


def settle(
    fields: Fields, prompt: Given | None, answers: Sequence[Given], places: Sequence[str]
) -> tuple[Turns, tuple[Turns, ...]]:
    """The prompt and the answers as they will be rendered, with the order of all turns checked.

    Without a prompt the turns that all answers share are the prompt. A prompt that every answer repeats is left out of
    the answers. Plain text stays plain only when everything is plain.
    """
    if (prompt is None or isinstance(prompt, str)) and all(isinstance(answer, str) for answer in answers):
        return _plain(fields, prompt, [answer for answer in answers if isinstance(answer, str)], places)
    chats = [
        [(place, Message("assistant", answer))] if isinstance(answer, str) else answer
        for place, answer in zip(places, answers, strict=True)
    ]
    if prompt is None:
        before, after = split_shared(fields, chats, places)
    elif isinstance(prompt, str):
        before, after = _after_text(fields, prompt, chats, places)
    else:
        before, after = prompt, [_without(prompt, chat) for chat in chats]
    for place, chat in zip(places, after, strict=True):
        check_answer(fields, before, chat, place)
    return tuple(turn for _, turn in before), tuple(tuple(turn for _, turn in chat) for chat in after)


def check_answer(fields: Fields, prompt: Placed, answer: Placed, place: str) -> None:
    """The order of the turns of prompt and answer; an answer begins and ends with what the assistant says."""
    if not answer:
        raise field_error(fields.record, place, f"{place} holds no answer", "E050")
    together = [*prompt, *answer]
    check_turns(fields.record, [turn for _, turn in together], [label for label, _ in together])
    for label, turn in (answer[0], answer[-1]):
        if turn.role != "assistant":
            word = "begins" if turn is answer[0][1] else "ends"
            message = f"{label}: the answer {word} with a {turn.role} turn, not with an assistant turn"
            raise field_error(fields.record, label, message, "E051")


def split_shared(fields: Fields, chats: Sequence[Placed], places: Sequence[str]) -> tuple[Placed, list[Placed]]:
    """The turns that all conversations share, and what each has of its own; E211 when they part at another turn.

    Equal conversations share all but the last turn.
    """
    shortest = min(map(len, chats))
    shared = next((at for at in range(shortest) if any(not same(chat[at], chats[0][at]) for chat in chats)), shortest)
    if shared == shortest:
        if any(len(chat) != shortest for chat in chats):
            ended = next(place for place, chat in zip(places, chats, strict=True) if len(chat) == shortest)
            raise different_prompts(fields, chats, places, shared, f"{ended} is only the beginning of the other")
        shared = max(0, shortest - 1)
    if shared == 0 or any(chat[shared][1].role != "assistant" for chat in chats):
        what = "share no turn" if shared == 0 else f"part at a {_odd_role(chats, shared)} turn"
        raise different_prompts(fields, chats, places, shared, f"{' and '.join(places[:2])} {what}")
    return chats[0][:shared], [chat[shared:] for chat in chats]


def same(one: tuple[str, Message], other: tuple[str, Message]) -> bool:
    """Whether two turns say the same; their weights do not matter."""
    return replace(one[1], weight=None) == replace(other[1], weight=None)


def different_prompts(fields: Fields, chats: Sequence[Placed], places: Sequence[str], at: int, what: str) -> DataError:
    evidence = [
        f"{place}, turn {at + 1}: {chat[at][1].role}: {_excerpt(chat[at][1].content)}"
        if at < len(chat)
        else f"{place} ends"
        for place, chat in zip(places, chats, strict=True)
    ]
    return prompts_error(fields, places[-1], f"{what}: the answers do not belong to one prompt", evidence)


def prompts_error(fields: Fields, place: str, message: str, evidence: Sequence[str] = ()) -> DataError:
    error = field_error(
        fields.record,
        place,
        message,
        "E211",
        [
            "put what was asked into prompt, and only what was answered into the answers",
            "leave such records out: data.on_bad=skip",
        ],
    )
    error.diagnostic = replace(error.diagnostic, evidence=tuple(evidence))
    return error


def _plain(
    fields: Fields, prompt: str | None, answers: Sequence[str], places: Sequence[str]
) -> tuple[str, tuple[str, ...]]:
    if prompt is None:
        keys = ", ".join(map(str, fields.record.value))[:200]
        raise prompts_error(
            fields, places[0], f"there is no prompt for {' and '.join(places[:2])}: the record has {keys}"
        )
    fields.check_filled("prompt", prompt)
    for place, answer in zip(places, answers, strict=True):
        if not answer.strip():
            raise field_error(fields.record, place, f"{place} is empty", "E050")
    return prompt, tuple(answers)


def _after_text(
    fields: Fields, prompt: str, chats: Sequence[Placed], places: Sequence[str]
) -> tuple[Placed, list[Placed]]:
    """A prompt as text before answers as turns: the user's words, also where the answers repeat them."""
    label = fields.column("prompt")
    if all(chat and chat[0][1].role == "assistant" for chat in chats):
        return [(label, Message("user", prompt))], list(chats)
    before, after = split_shared(fields, chats, places)
    asked = [turn.content for _, turn in before if turn.role == "user"]
    if not asked or asked[-1] != prompt:
        evidence = [f"{label}: {_excerpt(prompt)}", f"{places[0]}: {_excerpt(asked[-1] if asked else '')}"]
        raise prompts_error(fields, label, f"{label} is not what the conversations ask", evidence)
    return before, after


def _without(prompt: Placed, chat: Placed) -> Placed:
    """The answer without the prompt it repeats."""
    repeated = len(chat) > len(prompt) and all(same(one, other) for one, other in zip(prompt, chat, strict=False))
    return chat[len(prompt) :] if repeated and chat[0][1].role != "assistant" else chat


def _odd_role(chats: Sequence[Placed], at: int) -> str:
    return next(chat[at][1].role for chat in chats if chat[at][1].role != "assistant")


def _excerpt(text: str) -> str:
    shown = json.dumps(text, ensure_ascii=False)
    return shown if len(shown) <= 120 else shown[:80] + " ... " + shown[-35:]
