"""Turns of a chat record become messages; their roles, order and content are checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tunesmith.data.jsonl import parse_strict
from tunesmith.errors import DataError, Fix, Where, nearest
from tunesmith.types import Message, Record, Role

ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
}


def describe(value: Any) -> str:
    """A value of the wrong type in words, without its text."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"a number ({str(value)[:20]})"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    return f"of the type {type(value).__name__}"


def field_error(
    record: Record, field: str, message: str, code: str = "E048", fixes: Iterable[Fix | str] = ()
) -> DataError:
    """A fault in one field of a record."""
    return DataError(code, message, where=Where(record.file, record.line, field=field), fixes=fixes)


def read_turns(record: Record, container: str, turns: Sequence[Any], columns: Mapping[str, str]) -> list[Message]:
    """Each turn as a message; the keys are role/content or from/value, the content a text or a list of text parts."""
    messages = []
    for index, turn in enumerate(turns):
        field = f"{container}[{index}]"
        if not isinstance(turn, dict):
            raise field_error(record, field, f"{field} is {describe(turn)}; want an object with role and content")
        messages.append(_Turn(record, turn, field, columns).message())
    return messages


def check_turns(record: Record, turns: Sequence[Message], labels: Sequence[str], *, answered: bool = True) -> None:
    """The order of roles (E051), empty turns and a missing answer (E050); several assistant turns in a row are fine.

    With `answered` False the assistant need not have said anything yet.
    """
    before: Role | None = None
    for turn, label in zip(turns, labels, strict=True):
        problem = _order_problem(before, turn.role)
        if problem:
            raise field_error(record, label, f"{label}: {problem}", "E051")
        if not turn.content.strip() and not turn.tool_calls and turn.role in ("user", "assistant"):
            raise field_error(record, label, f"{label}: the {turn.role} turn is empty", "E050")
        before = turn.role
    if before is None:
        raise DataError("E050", "the conversation has no turns", where=Where(record.file, record.line))
    if answered and not any(turn.role == "assistant" for turn in turns):
        message = "the conversation has no assistant turn: nothing could be learned from it"
        raise DataError("E050", message, where=Where(record.file, record.line))


def _order_problem(before: Role | None, role: Role) -> str | None:
    if role == "system":
        return None if before is None else "a system turn after the first turn"
    if role == "user":
        return "a second user turn in a row" if before == "user" else None
    if before in (None, "system"):
        return (
            f"the conversation begins with {'an assistant' if role == 'assistant' else 'a tool'} turn, not a user turn"
        )
    if role == "tool" and before == "user":
        return "a tool turn after a user turn: no assistant turn asked for it"
    return None


class _Turn:
    """One turn of a record; `field` is its place, such as messages[2]."""

    def __init__(self, record: Record, turn: dict[str, Any], field: str, columns: Mapping[str, str]) -> None:
        self.record = record
        self.turn = turn
        self.field = field
        names = {name: columns.get(name, name) for name in ("role", "content", "from", "value")}
        by_role = names["role"] in turn or names["from"] not in turn
        self.role_key, self.content_key = (
            (names["role"], names["content"]) if by_role else (names["from"], names["value"])
        )

    def error(self, key: str, message: str, code: str = "E048", fixes: Iterable[Fix | str] = ()) -> DataError:
        return field_error(self.record, f"{self.field}.{key}", message, code, fixes)

    def message(self) -> Message:
        given = self.turn.get(self.role_key)
        role = self._role(given)
        content = self._content(role)
        calls = self._calls(role)
        if given == "function_call":
            calls, content = (*self._called(self.content_key, content), *calls), ""
        if content is None and not calls:
            key = self.content_key
            got = "null" if key in self.turn else "missing"
            raise self.error(key, f"{self.field}.{key} is {got}; want a text or a list of text parts")
        name, identity = (self._optional_text(key) for key in ("name", "tool_call_id"))
        return Message(role, content or "", calls, name, identity, self._weight())

    def _role(self, given: Any) -> Role:
        key = self.role_key
        if not isinstance(given, str):
            got = "is missing" if key not in self.turn else f"is {describe(given)}"
            raise self.error(key, f"{self.field}.{key} {got}; want one of {', '.join(ROLES)}")
        if given not in ROLES:
            close = nearest(given.strip().lower(), ROLES)
            hint = f": did you mean {close}?" if close else f"; known: {', '.join(ROLES)}"
            fixes = [f"write {close}"] if close else ["rename the role in the file, or leave the turn out"]
            raise self.error(key, f"unknown role {given[:40]!r}{hint}", "E049", fixes)
        return ROLES[given]

    def _content(self, role: Role) -> str | None:
        value, key = self.turn.get(self.content_key), self.content_key
        if value is None or isinstance(value, str):
            return value
        if not isinstance(value, list):
            message = f"{self.field}.{key} is {describe(value)}; want a text or a list of text parts"
            raise self.error(key, message)
        return "".join(self._part(f"{key}[{index}]", part) for index, part in enumerate(value))

    def _part(self, key: str, part: Any) -> str:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = repr(part.get("type")) if isinstance(part, dict) else describe(part)
            raise self.error(key, f"{self.field}.{key} is a part of type {kind}; only parts of type 'text' are read")
        text = part.get("text") if part.get("text") is not None else part.get("value")
        if not isinstance(text, str):
            raise self.error(f"{key}.text", f"{self.field}.{key}.text is {describe(text)}; want a text")
        return text

    def _calls(self, role: Role) -> tuple[dict[str, Any], ...]:
        value = self.turn.get("tool_calls")
        if value in (None, []):
            return ()
        if role != "assistant":
            raise self.error("tool_calls", f"{self.field}: only assistant turns call tools, this is a {role} turn")
        return self._called("tool_calls", value)

    def _called(self, key: str, value: Any) -> tuple[dict[str, Any], ...]:
        """Calls in the form that templates read: type, function name, arguments as an object."""
        calls = _decoded(value)
        calls = [calls] if isinstance(calls, dict) else calls
        if not isinstance(calls, list) or not calls:
            raise self.error(
                key, f"{self.field}.{key} is {describe(calls)}; want calls with name and arguments as JSON"
            )
        return tuple(self._call(key, call) for call in calls)

    def _call(self, key: str, call: Any) -> dict[str, Any]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise self.error(key, f"{self.field}.{key}: a call has no function name")
        arguments = _decoded(function.get("arguments"))
        if not isinstance(arguments, dict):
            message = f"{self.field}.{key}: the arguments of {function['name'][:40]} are {describe(arguments)}"
            raise self.error(key, f"{message}; want an object")
        identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        return {**identity, "type": "function", "function": {"name": function["name"], "arguments": arguments}}

    def _optional_text(self, key: str) -> str | None:
        value = self.turn.get(key)
        if value is not None and not isinstance(value, str):
            raise self.error(key, f"{self.field}.{key} is {describe(value)}; want a text")
        return value

    def _weight(self) -> float | None:
        """`train: false` is weight 0 and `train: true` weight 1; a number stands for itself."""
        train = self.turn.get("train")
        if train is not None and not isinstance(train, bool):
            raise self.error("train", f"{self.field}.train is {describe(train)}; want true or false")
        for key in ("weight", "loss_weight"):
            value = self.turn.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise self.error(key, f"{self.field}.{key} is {describe(value)}; want a number from 0 up")
            return 0.0 if train is False else float(value)
        return None if train is None else float(train)


def read_tools(record: Record, field: str, value: Any) -> tuple[dict[str, Any], ...]:
    """Tool definitions, also as a JSON text; a bare {name, parameters} gets the wrapping that templates read."""
    tools = _decoded(value) if value != "" else None
    if tools is None:
        return ()
    if isinstance(tools, dict):
        tools = [tools]
    if not isinstance(tools, list):
        raise field_error(record, field, f"{field} is {describe(tools)}; want a list of tools, or such a list as JSON")
    found = []
    for index, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise field_error(record, f"{field}[{index}]", f"{field}[{index}] is not a tool with a name")
        found.append(tool if "function" in tool else {"type": "function", "function": tool})
    return tuple(found)


def _decoded(value: Any) -> Any:
    """A text that is JSON as its value; any other text, and any other value, as it is."""
    if not isinstance(value, str):
        return value
    try:
        return parse_strict(value)
    except (ValueError, RecursionError):
        return value
