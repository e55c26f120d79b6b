"""Prompts of a file, whatever the shape of its records: what stands before the last answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.data.config import SourceConfig
from tunesmith.data.entries import Entry, alike
from tunesmith.data.fields import Fields
from tunesmith.data.formats import convert, form_of, recognise
from tunesmith.data.sources import open_source
from tunesmith.data.tally import Tally
from tunesmith.data.tokenizer import Tokenizer, to_json
from tunesmith.errors import DataError, Where
from tunesmith.rollout.config import Texts
from tunesmith.types import Completion, Conversation, Document, Kind, Message, Pair, Record, Turns

STAND_IN = "."  # takes the place of a missing answer, so that a prompt is checked by the rules of its shape


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked: the turns of a chat, or plain text; `reference` is the answer that the record gives."""

    turns: Turns
    file: str
    line: int
    tools: tuple[dict[str, Any], ...] = ()
    reference: str | None = None

    @property
    def asked(self) -> str:
        """The last turn, or the text."""
        return self.turns if isinstance(self.turns, str) else self.turns[-1].content

    def tokens(self, tokenizer: Tokenizer) -> list[int]:
        """As the model reads it: a chat with the text that asks for an answer, plain text without a template."""
        if isinstance(self.turns, str):
            return [*tokenizer.start_ids, *tokenizer.encode(self.turns, specials=False)]
        return tokenizer.prompt_ids(self.turns, self.tools)

    def to_json(self) -> dict[str, Any]:
        """The fields of a record that say this prompt."""
        turns = self.turns if isinstance(self.turns, str) else [to_json(message) for message in self.turns]
        found: dict[str, Any] = {"prompt": turns}
        if self.tools:
            found["tools"] = list(self.tools)
        if self.reference is not None:
            found["reference"] = self.reference
        return found


def read_prompts(
    source: SourceConfig, tally: Tally | None = None, limit: int | None = None, *, texts: Texts = "auto"
) -> Iterator[Prompt]:
    """The first `limit` prompts of a source; every non-blank line of a .txt file is one.

    A conversation is asked up to its last answer, or as a whole when a user has the last word. `texts` says whether a
    prompt that is a text is a turn of a user or plain text. Faults go to the tally; E262: the record has no prompt.
    """
    tally = tally or Tally()
    lines = source if "text" in source.columns else with_lines(source)
    taken = 0
    for records in open_source(lines, tally):
        for record in records:
            try:
                prompt = to_prompt(record, source, texts)
            except DataError as error:
                tally.refuse(error.diagnostic, alike(error))
                continue
            if tally.failing:
                continue
            yield prompt
            taken += 1
            if taken == limit:
                tally.end_file(record.file)
                return


def with_lines(source: SourceConfig) -> SourceConfig:
    return source.model_copy(update={"columns": {**source.columns, "text": "line"}})


def to_prompt(record: Record, source: SourceConfig, texts: Texts) -> Prompt:
    """The prompt of one record; DataError names the field that stands in the way."""
    line = record.value.get("line")
    if record.value.keys() == {"line"} and isinstance(line, str):
        return Prompt(line if texts == "plain" else (Message("user", line),), record.file, record.line)
    prompt = prompt_of(read_entry(record, source))
    if prompt is None:
        message = "the record has no prompt: nothing stands before its answer"
        raise DataError("E262", message, where=Where(record.file, record.line))
    given = record.value.get("reference")
    reference = given if isinstance(given, str) else prompt.reference
    judged = "label" in record.value  # an answer that may be bad is nothing to compare with
    prompt = replace(prompt, reference=None if reference == STAND_IN or judged else reference)
    if not isinstance(prompt.turns, str):  # weights are for training
        return replace(prompt, turns=tuple(replace(turn, weight=None) for turn in prompt.turns))
    return replace(prompt, turns=(Message("user", prompt.turns),)) if texts == "chat" else prompt


def read_entry(record: Record, source: SourceConfig) -> Entry:
    """A pair where the record is one, else its conversation, completion or text, answered by a stand-in if need be."""
    kind: Kind = "pair" if form_of(Fields(record, source.columns), "pair") is not None else "sequence"
    if kind == "sequence":
        record = replace(record, value=with_answer(record.value, source.columns))
    return convert(record, recognise(record, source, kind), source.columns, kind)


def with_answer(value: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """The record with a stand-in where its shape wants an answer and it has none."""
    names = {name: columns.get(name, name) for name in ("messages", "conversations", "instruction", "output", "prompt")}
    for name in (names["messages"], names["conversations"]):
        turns = value.get(name)
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict):
            last = turns[-1]
            keys = ("from", "value") if "from" in last else ("role", "content")
            role, content = (columns.get(key, key) for key in keys)
            if last.get(role) not in ("assistant", "gpt", "function_call"):
                return {**value, name: [*turns, {role: "assistant", content: STAND_IN}]}
            return value
    if names["instruction"] in value and value.get(names["output"]) is None:
        return {**value, names["output"]: STAND_IN}
    asked, completion = value.get(names["prompt"]), columns.get("completion", "completion")
    if asked is None or value.get(completion) is not None:
        return value
    return {**value, completion: [{"role": "assistant", "content": STAND_IN}] if isinstance(asked, list) else STAND_IN}


def prompt_of(entry: Entry) -> Prompt | None:
    """What stands before the (last) answer of an entry, with that answer; None where nothing does."""
    if isinstance(entry, Conversation):
        return _before_last_answer(entry)
    if isinstance(entry, Completion):
        return Prompt(entry.prompt, entry.file, entry.line, reference=entry.completion)
    if isinstance(entry, Pair):
        return Prompt(entry.prompt, entry.file, entry.line, entry.tools, text_of(entry.chosen))
    return Prompt(entry.text, entry.file, entry.line) if isinstance(entry, Document) else None


def text_of(turns: Turns) -> str:
    """The words of an answer; of several turns the last."""
    return turns if isinstance(turns, str) else turns[-1].content


def _before_last_answer(entry: Conversation) -> Prompt | None:
    last = max((at for at, message in enumerate(entry.messages) if message.role == "assistant"), default=0)
    if last == 0:
        return None
    answer = entry.messages[last]
    reference = None if answer.tool_calls else answer.content
    return Prompt(entry.messages[:last], entry.file, entry.line, entry.tools, reference)
