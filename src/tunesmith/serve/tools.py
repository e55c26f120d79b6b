"""Calls of tools in what a model writes, in the form that its chat template teaches."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.rollout.text import StopFinder
from tunesmith.serve.grammar import SPACES
from tunesmith.serve.refusals import Refusal
from tunesmith.serve.wire import ChatAsked, NamedTool, Tool


@dataclass(frozen=True, slots=True)
class Style:
    """What stands around a call, and the key of its arguments."""

    opening: str
    closing: str
    key: str
    listed: bool = False  # the calls are one JSON list
    between: str = ""  # the name and the arguments, where they are no JSON object together
    id_length: int = 24  # of the names of calls, which a template may insist on


TAGGED = Style("<tool_call>", "</tool_call>", "arguments")  # Hermes, Qwen, SmolLM3
LISTED = Style("[TOOL_CALLS]", "", "arguments", listed=True, id_length=9)  # Mistral up to tokenizer v7
NAMED = Style("[TOOL_CALLS]", "", "arguments", between="[ARGS]", id_length=9)  # Mistral from v11
PARAMETERS = Style("", "", "parameters")  # Llama 3
BARE = Style("", "", "arguments")
CALL_ID = "[CALL_ID]"  # may stand behind the name in NAMED
SEPARATORS = " \t\r\n;,"  # between calls that nothing stands around


def style_of(tokenizer: Tokenizer) -> Style:
    """Raises Refusal E423 for a template that does not speak of tools."""
    text = tokenizer.template(with_tools=True).text
    if "tools" not in text:
        message = "the chat template of this model knows no tools"
        raise Refusal("E423", message, field="tools", fix="leave them out, or use a model that was trained with tools")
    if LISTED.opening in text:
        return NAMED if NAMED.between in text else LISTED
    if TAGGED.opening in text:
        return TAGGED
    return PARAMETERS if '"parameters"' in text else BARE


def mark_ids(tokenizer: Tokenizer, style: Style) -> dict[str, int]:
    """The marks of a style that are control tokens: answers show them all the same, and grammars name their ids."""
    marks = (style.opening, style.closing, style.between, CALL_ID)
    return {mark: tokenizer.control.ids[mark] for mark in marks if mark in tokenizer.control.ids}


def offered(asked: ChatAsked) -> list[Tool]:
    """The tools that may be called. Raises Refusal E411 for a choice that is not among them."""
    tools = [] if asked.tool_choice == "none" else list(asked.tools or ())
    if isinstance(asked.tool_choice, NamedTool):
        name = asked.tool_choice.function.name
        tools = [tool for tool in tools if tool.function.name == name]
        if not tools:
            raise Refusal("E411", f"no tool is called {name}", field="tool_choice", fix="name one of tools")
    if asked.tool_choice == "required" and not tools:
        raise Refusal("E411", "a call is required of no tool", field="tool_choice", fix="give tools")
    return tools


def call_grammar(tools: Sequence[Tool], style: Style, marks: Mapping[str, int]) -> str:
    """A call of one of the tools in that style, in the language of llguidance."""

    def literal(mark: str) -> str:
        return f"<[{marks[mark]}]>" if mark in marks else json.dumps(mark)

    def json_of(schema: Mapping[str, Any]) -> str:
        return f"%json {json.dumps({**schema, 'x-guidance': SPACES})}"

    rules = []
    for at, tool in enumerate(tools):
        arguments = tool.function.parameters or {"type": "object"}
        if style.between:
            head = f"{json.dumps(tool.function.name)} {literal(style.between)} arguments_{at}"
            rules += [f"call_{at}: {head}", f"arguments_{at}: {json_of(arguments)}"]
        else:
            rules.append(f"call_{at}: {json_of(call_schema(tool.function.name, arguments, style))}")
    call = " | ".join(f"call_{at}" for at in range(len(tools)))
    parts = [f"({call})"]
    if style.listed:
        parts = ['"["', *parts, '"]"']
    around = [literal(style.opening)] if style.opening else []
    after = [literal(style.closing)] if style.closing else []
    return "\n".join([f"start: {' '.join([*around, *parts, *after])}", *rules]) + "\n"


def call_schema(name: str, arguments: Mapping[str, Any], style: Style) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, style.key: arguments},
        "required": ["name", style.key],
        "additionalProperties": False,
    }


class CallFinder:
    """Parts what a model writes into text, which is let through at once, and calls, which come at the end."""

    def __init__(self, style: Style, names: Sequence[str]) -> None:
        self.style, self.names = style, frozenset(names)
        self.before = StopFinder[None]((style.opening,) if style.opening else ())
        self.held = ""  # from the beginning of the first call on
        self.calling = False
        self.begun = False

    def add(self, text: str) -> str:
        """The part of the text that belongs to no call."""
        if self.calling:
            self.held += text
            return ""
        if not self.style.opening:
            return self.add_bare(text)
        whole = self.before.text + text
        out, _ = self.before.add(text, None)
        if self.before.found:
            self.calling, self.held = True, whole[len(out) :]
        return out

    def add_bare(self, text: str) -> str:
        """Without marks around it a call is an answer that begins with a brace."""
        self.held += text
        lead = self.held.lstrip()
        self.calling = not self.begun and lead.startswith("{")
        if self.calling or not (self.begun or lead):
            return ""
        self.begun = True
        out, self.held = self.held, ""
        return out

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """The text that is left, and the calls; what looks like a call and is none is text."""
        if not self.calling:
            return self.held + self.before.end()[0], []
        calls = [self.call(name, given) for name, given in self.found()]
        known = [call for call in calls if call is not None]
        return ("", known) if known and len(known) == len(calls) else (self.held, [])

    def found(self) -> list[tuple[Any, Any]]:
        """Name and arguments of everything that looks like a call; None for the name of what only begins like one."""
        style = self.style
        parts = self.held.split(style.opening)[1:] if style.opening else [self.held]
        if style.between:
            return [self.named(part) for part in parts]
        texts = [part.partition(style.closing)[0] if style.closing else part for part in parts]
        return [self.parted(value) for text in texts for value in values_in(text)]

    def named(self, part: str) -> tuple[Any, Any]:
        name, _, given = part.partition(self.style.between)
        values = values_in(given)
        return name.partition(CALL_ID)[0].strip(), values[0] if len(values) == 1 else None

    def parted(self, value: Any) -> tuple[Any, Any]:
        if not isinstance(value, dict):
            return None, None
        return value.get("name"), value.get(self.style.key, value.get("arguments", value.get("parameters", {})))

    def call(self, name: Any, given: Any) -> dict[str, Any] | None:
        if not isinstance(name, str) or name not in self.names or given is None:
            return None
        arguments = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        key = secrets.token_hex(self.style.id_length)[: self.style.id_length]
        number = key if self.style.id_length < LONG_ID else f"call_{key}"
        return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


LONG_ID = 24  # from which the name of a call has room to say what it is


def values_in(text: str) -> list[Any]:
    """The JSON values of a text, those of lists one by one; one that is None where the text is something else."""
    found: list[Any] = []
    text = text.strip(SEPARATORS)
    while text:
        try:
            value, end = json.JSONDecoder().raw_decode(text)
        except ValueError:
            return [None]
        found += value if isinstance(value, list) else [value]
        text = text[end:].strip(SEPARATORS)
    return found or [None]
