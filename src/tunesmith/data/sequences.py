"""Records to learn word by word: conversations, completions and documents."""

from __future__ import annotations

from dataclasses import replace

from tunesmith.data.config import Shape
from tunesmith.data.fields import Fields, Placed
from tunesmith.data.turns import check_turns, describe, field_error
from tunesmith.types import Completion, Conversation, Document, Message

Sequence = Conversation | Completion | Document


def read_sequence(fields: Fields, shape: Shape) -> Sequence:
    """The record as what its shape says; DataError (E048-E051) names the field that stands in the way."""
    if shape == "alpaca":
        placed = [*alpaca_prompt(fields), (fields.column("output"), Message("assistant", fields.text("output")))]
        return _conversation(fields, placed)
    if shape == "text":
        text = fields.text("text")
        fields.check_filled("text", text)
        return Document(text, fields.record.file, fields.record.line)
    if shape == "prompt_completion":
        return _prompt_completion(fields)
    return _conversation(fields, chat_turns(fields, "messages" if shape == "messages" else "conversations"))


def chat_turns(fields: Fields, container: str) -> Placed:
    """The turns of `messages`, or of `conversations` with the system text that may stand beside them."""
    placed = fields.turns(container)
    if system := fields.text("system", needed=False) if container == "conversations" else "":
        placed.insert(0, (fields.column("system"), Message("system", system)))
    return placed


def alpaca_prompt(fields: Fields) -> Placed:
    """System, history, then instruction, a line break and input, as the authors of the shape joined them."""
    placed: Placed = []
    if system := fields.text("system", needed=False):
        placed.append((fields.column("system"), Message("system", system)))
    placed += _history(fields)
    instruction, extra = fields.text("instruction"), fields.text("input", needed=False)
    prompt = "\n".join(part for part in (instruction, extra) if part.strip())
    return [*placed, (fields.column("instruction"), Message("user", prompt))]


def _conversation(fields: Fields, placed: Placed) -> Conversation:
    labels, turns = [label for label, _ in placed], [turn for _, turn in placed]
    check_turns(fields.record, turns, labels)
    return Conversation(tuple(turns), fields.record.file, fields.record.line, fields.tools())


def _history(fields: Fields) -> Placed:
    value, name = fields.value("history"), fields.column("history")
    if value is None:
        return []
    if not isinstance(value, list):
        raise fields.error("history", f"{name} is {describe(value)}; want a list of [question, answer]")
    found: Placed = []
    for index, pair in enumerate(value):
        label = f"{name}[{index}]"
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            message = f"{label} is {describe(pair)}; want two texts: [question, answer]"
            raise field_error(fields.record, label, message)
        found += [(f"{label}[0]", Message("user", pair[0])), (f"{label}[1]", Message("assistant", pair[1]))]
    return found


def _prompt_completion(fields: Fields) -> Completion | Conversation:
    """Texts are rendered without a template; lists of turns are a chat in which the prompt's turns are not trained."""
    record = fields.record
    if isinstance(fields.value("prompt"), list) and isinstance(fields.value("completion"), list):
        before = [
            (label, turn if turn.weight is not None else replace(turn, weight=0.0))
            for label, turn in fields.turns("prompt")
        ]
        after = fields.turns("completion")
        if not any(turn.role == "assistant" for _, turn in after):
            raise fields.error("completion", f"{fields.column('completion')} has no assistant turn", "E050")
        return _conversation(fields, [*before, *after])
    texts = fields.text("prompt"), fields.text("completion")
    fields.check_filled("prompt", texts[0])
    fields.check_filled("completion", texts[1])
    return Completion(*texts, record.file, record.line)
