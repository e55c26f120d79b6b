"""Calls of tools in what a model writes, in the form that its chat template teaches."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.rollout.text import StopFinder
from tunesmith.serve.refusals import Refusal
from tunesmith.serve.wire import ChatAsked, NamedTool, Tool


@dataclass(frozen=True, slots=True)
class Style:
    """What stands around a call, and the key of its arguments."""

    opening: str
    closing: str
    key: str


TAGGED = Style("<tool_call>", "</tool_call>", "arguments")  # Hermes, Qwen, SmolLM3
PARAMETERS = Style("", "", "parameters")  # Llama 3
BARE = Style("", "", "arguments")


def style_of(tokenizer: Tokenizer) -> Style:
    """Raises Refusal E423 for a template that does not speak of tools."""
    text = tokenizer.template(with_tools=True).text
    if "tools" not in text:
        message = "the chat template of this model knows no tools"
        raise Refusal("E423", message, field="tools", fix="leave them out, or use a model that was trained with tools")
    if TAGGED.opening in text:
        return TAGGED
    return PARAMETERS if '"parameters"' in text else BARE


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


def call_schema(tools: Sequence[Tool], style: Style) -> dict[str, Any]:
    """A call of one of the tools, as a JSON schema."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                style.key: tool.function.parameters or {"type": "object"},
            },
            "required": ["name", style.key],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


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
        found = self.tagged() if self.style.opening else [self.call(self.held)]
        calls = [call for call in found if call is not None]
        return ("", calls) if calls and len(calls) == len(found) else (self.held, [])

    def tagged(self) -> list[dict[str, Any] | None]:
        parts = self.held.split(self.style.opening)[1:]
        return [self.call(part.partition(self.style.closing)[0]) for part in parts]

    def call(self, text: str) -> dict[str, Any] | None:
        try:
            found = json.loads(text.strip())
        except ValueError:
            return None
        if not isinstance(found, dict) or found.get("name") not in self.names:
            return None
        given = found.get(self.style.key, found.get("arguments", found.get("parameters", {})))
        arguments = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        told = {"name": found["name"], "arguments": arguments}
        return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": told}
