"""Entries back to records: the one way of writing each kind that every reader here understands."""

from __future__ import annotations

from typing import Any

from tunesmith.data.formats import Entry
from tunesmith.data.tokenizer import to_json
from tunesmith.types import (
    Completion,
    Conversation,
    Document,
    Feedback,
    Labelled,
    Message,
    Pair,
    Process,
    Ranking,
    Turns,
)


def to_record(entry: Entry) -> dict[str, Any]:
    """The record that reads as the same entry; texts stay texts, chats become lists of role and content."""
    if isinstance(entry, Conversation):
        return {"messages": turns_to_json(entry.messages), **_tools(entry.tools)}
    if isinstance(entry, Completion):
        return {"prompt": entry.prompt, "completion": entry.completion}
    if isinstance(entry, Document):
        return {"text": entry.text}
    if isinstance(entry, Labelled):
        name = "text" if isinstance(entry.text, str) else "messages"
        return {name: turns_to_json(entry.text), "label": entry.label}
    prompt = {"prompt": turns_to_json(entry.prompt)}
    if isinstance(entry, Process):
        return {**prompt, "steps": list(entry.steps), "labels": list(entry.labels)}
    tools = _tools(entry.tools)
    if isinstance(entry, Feedback):
        return {**prompt, "completion": turns_to_json(entry.answer), "label": entry.good, **tools}
    if isinstance(entry, Ranking):
        scores = {} if entry.scores is None else {"scores": list(entry.scores)}
        return {**prompt, "answers": [turns_to_json(answer) for answer in entry.answers], **scores, **tools}
    margin = {} if entry.margin is None else {"margin": entry.margin}
    return {
        **prompt,
        "chosen": turns_to_json(entry.chosen),
        "rejected": turns_to_json(entry.rejected),
        **margin,
        **tools,
    }


def learned(entry: Pair | Feedback | Ranking, answer: Turns) -> dict[str, Any]:
    """A prompt and one of its answers as a record to imitate, of which only the answer is trained."""
    return {"prompt": turns_to_json(entry.prompt), "completion": turns_to_json(answer), **_tools(entry.tools)}


def turns_to_json(turns: Turns) -> Any:
    return turns if isinstance(turns, str) else [_message(turn) for turn in turns]


def _message(message: Message) -> dict[str, Any]:
    weight = {} if message.weight is None else {"weight": message.weight}
    return {**to_json(message), **weight}


def _tools(tools: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    return {"tools": list(tools)} if tools else {}
