"""Records of known shapes become conversations, completions and documents; nothing in a text is ever changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.data.config import Shape, SourceConfig
from tunesmith.data.turns import check_turns, describe, field_error, read_tools, read_turns
from tunesmith.errors import DataError, Fix, Where, nearest
from tunesmith.types import Completion, Conversation, Document, Message, Record

Entry = Conversation | Completion | Document

REQUIRED: dict[Shape, tuple[str, ...]] = {  # in the order in which shapes are tried
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
OPTIONAL: dict[Shape, tuple[str, ...]] = {
    "messages": ("tools",),
    "sharegpt": ("system", "tools"),
    "alpaca": ("input", "history", "system", "tools"),
    "prompt_completion": ("tools",),
    "text": (),
}
TURN_FIELDS = ("role", "content", "from", "value")
FIELDS = frozenset(field for group in (*REQUIRED.values(), *OPTIONAL.values(), TURN_FIELDS) for field in group)
OTHER_NAMES = {  # how other files call our fields; only to propose a mapping
    "messages": ("conversation", "dialog", "dialogue", "chat", "turns"),
    "conversations": ("conversation",),
    "instruction": ("question", "query", "problem", "task", "input"),
    "output": ("response", "answer", "completion", "target", "reply", "solution", "ref"),
    "prompt": ("question", "query", "problem", "input", "source"),
    "completion": ("response", "answer", "output", "target", "reply", "solution"),
    "text": ("content", "document", "body", "page", "line"),
}


def recognise(record: Record, source: SourceConfig) -> Shape:
    """The shape the source names, or the first one whose fields the record has (E047 when none fits)."""
    unknown = next((name for name in source.columns if name not in FIELDS), None)
    if unknown is not None:
        close = nearest(unknown, FIELDS)
        raise DataError(
            "E047",
            f"columns maps {unknown!r}, which is no field of any shape",
            where=Where(record.file, record.line),
            fixes=[f"did you mean {close}?" if close else f"known fields: {', '.join(sorted(FIELDS))}"],
        )
    if source.shape != "auto":
        return source.shape
    present = {name for name in FIELDS if source.columns.get(name, name) in record.value}
    for shape, required in REQUIRED.items():
        if present.issuperset(required):
            return shape
    raise _unknown_shape(record, present)


def convert(record: Record, shape: Shape, columns: Mapping[str, str]) -> Entry:
    """The record as what its shape says; DataError (E048-E051) names the field that stands in the way."""
    fields = _Fields(record, columns)
    if shape == "alpaca":
        return _alpaca(fields)
    if shape == "text":
        text = fields.text("text")
        fields.check_filled("text", text)
        return Document(text, record.file, record.line)
    if shape == "prompt_completion":
        return _prompt_completion(fields)
    return _chat(fields, "messages" if shape == "messages" else "conversations")


@dataclass(frozen=True, slots=True)
class _Fields:
    """A record seen through the column mapping: our names in, the file's names in errors."""

    record: Record
    columns: Mapping[str, str]

    def column(self, name: str) -> str:
        return self.columns.get(name, name)

    def value(self, name: str) -> Any:
        return self.record.value.get(self.column(name))

    def error(self, name: str, message: str, code: str = "E048") -> DataError:
        fixes = []
        if code == "E048" and self.column(name) not in self.record.value:
            fixes.append(f"the record has: {', '.join(map(str, self.record.value))[:200]}")
        return field_error(self.record, self.column(name), message, code, fixes)

    def text(self, name: str, *, needed: bool = True) -> str:
        value = self.value(name)
        if isinstance(value, str):
            return value
        if value is None and not needed:
            return ""
        got = "is missing" if self.column(name) not in self.record.value else f"is {describe(value)}"
        raise self.error(name, f"{self.column(name)} {got}; want a text")

    def check_filled(self, name: str, text: str) -> None:
        if not text.strip():
            raise self.error(name, f"{self.column(name)} is empty", "E050")


def _chat(fields: _Fields, container: str) -> Conversation:
    record, name = fields.record, fields.column(container)
    turns = _turns(fields, container)
    labels = [f"{name}[{index}]" for index in range(len(turns))]
    if system := fields.text("system", needed=False) if container == "conversations" else "":
        turns.insert(0, Message("system", system))
        labels.insert(0, fields.column("system"))
    check_turns(record, turns, labels)
    return Conversation(tuple(turns), record.file, record.line, _tools(fields))


def _turns(fields: _Fields, container: str) -> list[Message]:
    value = fields.value(container)
    name = fields.column(container)
    if not isinstance(value, list):
        got = "is missing" if name not in fields.record.value else f"is {describe(value)}"
        raise fields.error(container, f"{name} {got}; want a list of turns")
    return read_turns(fields.record, name, value, fields.columns)


def _tools(fields: _Fields) -> tuple[dict[str, Any], ...]:
    return read_tools(fields.record, fields.column("tools"), fields.value("tools"))


def _alpaca(fields: _Fields) -> Conversation:
    """The prompt is instruction, a line break and input, as the authors of the shape joined them."""
    turns: list[Message] = []
    labels: list[str] = []
    if system := fields.text("system", needed=False):
        turns.append(Message("system", system))
        labels.append(fields.column("system"))
    for label, message in _history(fields):
        labels.append(label)
        turns.append(message)
    instruction, extra = fields.text("instruction"), fields.text("input", needed=False)
    prompt = "\n".join(part for part in (instruction, extra) if part.strip())
    turns += [Message("user", prompt), Message("assistant", fields.text("output"))]
    labels += [fields.column("instruction"), fields.column("output")]
    check_turns(fields.record, turns, labels)
    return Conversation(tuple(turns), fields.record.file, fields.record.line, _tools(fields))


def _history(fields: _Fields) -> list[tuple[str, Message]]:
    value, name = fields.value("history"), fields.column("history")
    if value is None:
        return []
    if not isinstance(value, list):
        raise fields.error("history", f"{name} is {describe(value)}; want a list of [question, answer]")
    found: list[tuple[str, Message]] = []
    for index, pair in enumerate(value):
        label = f"{name}[{index}]"
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            message = f"{label} is {describe(pair)}; want two texts: [question, answer]"
            raise field_error(fields.record, label, message)
        found += [(f"{label}[0]", Message("user", pair[0])), (f"{label}[1]", Message("assistant", pair[1]))]
    return found


def _prompt_completion(fields: _Fields) -> Completion | Conversation:
    """Texts are rendered without a template; lists of turns are a chat in which the prompt's turns are not trained."""
    record = fields.record
    prompt, completion = fields.value("prompt"), fields.value("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        before = [turn if turn.weight is not None else replace(turn, weight=0.0) for turn in _turns(fields, "prompt")]
        after = _turns(fields, "completion")
        labels = [f"{fields.column('prompt')}[{index}]" for index in range(len(before))]
        labels += [f"{fields.column('completion')}[{index}]" for index in range(len(after))]
        if not any(turn.role == "assistant" for turn in after):
            raise fields.error("completion", f"{fields.column('completion')} has no assistant turn", "E050")
        check_turns(record, [*before, *after], labels)
        return Conversation((*before, *after), record.file, record.line, _tools(fields))
    texts = fields.text("prompt"), fields.text("completion")
    fields.check_filled("prompt", texts[0])
    fields.check_filled("completion", texts[1])
    return Completion(*texts, record.file, record.line)


def _unknown_shape(record: Record, present: set[str]) -> DataError:
    keys = ", ".join(map(str, record.value))[:200] or "none"
    evidence = [f"{shape}: {', '.join(required)}" for shape, required in REQUIRED.items()]
    if {"chosen", "rejected"} <= record.value.keys():
        evidence.append("chosen and rejected: this is a set of preference pairs, not of answers to learn")
    mappings = {shape: _guess(required, present, record) for shape, required in REQUIRED.items()}
    fewest = min((len(mapping) for mapping in mappings.values() if mapping), default=0)
    fixes: list[Fix | str] = []
    for shape, mapping in mappings.items():
        if mapping and len(mapping) == fewest:
            setting = " ".join(f"data.train.0.columns.{ours}={theirs}" for ours, theirs in mapping.items())
            fixes.append(Fix(f"read it as {shape}: {setting}", set={"data.train.0.columns": mapping}))
    fixes.append("map our fields to the columns of the file: data.train.0.columns.FIELD=COLUMN")
    message = f"no known shape: the record has the keys {keys}"
    return DataError("E047", message, where=Where(record.file, record.line), evidence=evidence, fixes=fixes)


def _guess(required: tuple[str, ...], present: set[str], record: Record) -> dict[str, str]:
    """A column for each missing field by its usual other names; empty when one has none."""
    mapping: dict[str, str] = {}
    for name in required:
        if name in present:
            continue
        found = next((other for other in OTHER_NAMES[name] if isinstance(record.value.get(other), str | list)), None)
        if found is None or found in mapping.values():
            return {}
        mapping[name] = found
    return mapping
