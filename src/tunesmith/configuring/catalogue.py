"""Every setting of a schema as one flat table: key, type, default, range, text. Works on schema.json, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Schema = Mapping[str, Any]

SCHEMA_FILE = Path(__file__).parent.parent / "schema.json"


@dataclass(frozen=True, slots=True)
class Setting:
    """One leaf; in a key `N` is a position in a list and `NAME` a free name; `variant` is the method it belongs to.

    A key of several methods has the setting of each of them in `parts`.
    """

    key: str
    type: str
    default: str
    allowed: str
    text: str
    variant: str = ""
    parts: tuple[Setting, ...] = field(default=(), repr=False)

    def of(self, variant: str) -> Setting | None:
        """The setting as one method has it; None when that method has none."""
        if not self.variant:
            return self
        return next((part for part in self.parts or (self,) if part.variant == variant), None)


def catalogue(schema: Schema) -> dict[str, Setting]:
    """All leaves by key, in the order of the schema; a key shared by several variants appears once."""
    found: dict[str, Setting] = {}
    for setting in _walk(schema, schema, "", ""):
        known = found.get(setting.key)
        if known is None:
            found[setting.key] = setting
        elif known.variant and setting.variant:
            found[setting.key] = _joined(known, setting)
    return found


def stored_schema() -> dict[str, Any]:
    """The schema of a recipe as generated into the package."""
    return json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))


def general_key(key: tuple[str | int, ...], known: Mapping[str, Setting]) -> str:
    """The catalogue's name for the place `key`: positions become N, free names NAME."""
    name = ".".join("N" if isinstance(part, int) else part for part in key)
    parent = name.rpartition(".")[0]
    return f"{parent}.NAME" if f"{parent}.NAME" in known else name


def _joined(one: Setting, other: Setting) -> Setting:
    """Both in one: where another variant has a default, a range or a meaning of its own, it is named with it."""
    allowed = " | ".join(dict.fromkeys((*one.allowed.split(" | "), *other.allowed.split(" | "))))
    default = one.default
    if other.default != one.default.partition("; ")[0]:
        default += f"; {other.variant} {other.default}"
    text = one.text if other.text in one.text else f"{one.text} {other.variant}: {other.text}"
    parts = (*(one.parts or (one,)), other)
    return Setting(one.key, one.type, default, allowed, text, f"{one.variant}, {other.variant}", parts)


def _follow(part: Schema, schema: Schema) -> dict[str, Any]:
    """The part with its reference replaced by what it points to; its own words win."""
    if "$ref" not in part:
        return dict(part)
    target = schema["$defs"][part["$ref"].rpartition("/")[2]]
    return {**target, **{name: value for name, value in part.items() if name != "$ref"}}


def _alternatives(part: Schema, schema: Schema) -> list[dict[str, Any]]:
    part = _follow(part, schema)
    choices = part.get("oneOf") or part.get("anyOf")
    if not choices:
        return [part]
    return [found for choice in choices for found in _alternatives(choice, schema)]


def _walk(part: Schema, schema: Schema, key: str, variant: str) -> Iterator[Setting]:
    whole = _follow(part, schema)
    choices = _alternatives(part, schema)
    groups = [choice for choice in choices if "properties" in choice]
    if groups:
        tag = whole.get("discriminator", {}).get("propertyName")
        for group in groups:
            name = str(group["properties"][tag].get("const")) if tag else variant
            for field, inner in group["properties"].items():
                yield from _walk(inner, schema, f"{key}.{field}" if key else field, name)
        return
    for choice in choices:
        items = _alternatives(choice.get("items", {}), schema)[0] if choice.get("type") == "array" else {}
        if "properties" in items:
            yield from _walk(choice["items"], schema, f"{key}.N", variant)
            return
        if choice.get("type") == "object":
            key = f"{key}.NAME"
    text = whole.get("description", "")
    yield Setting(key, _type(choices, schema), _default(whole), allowed(choices, schema), text, variant)


def _type(choices: list[dict[str, Any]], schema: Schema) -> str:
    words = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "empty"}
    names = []
    for choice in choices:
        if "enum" in choice or "const" in choice:
            names.append("word")
        elif choice.get("type") == "array":
            names.append("list of " + _type(_alternatives(choice.get("items", {}), schema), schema))
        elif choice.get("type") == "object":
            names.append(_type([choice.get("additionalProperties", {})], schema))
        else:
            names.append(words.get(str(choice.get("type")), "any"))
    return " or ".join(dict.fromkeys(names))


def _default(part: Schema) -> str:
    if "default" in part:
        return "empty" if part["default"] is None else plain(part["default"])
    return plain(part["const"]) if "const" in part else "required"


def plain(value: Any) -> str:
    """A value as one would write it in a recipe."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(plain(entry) for entry in value) + "]"
    return json.dumps(value, default=str)


def allowed(choices: list[dict[str, Any]], schema: Schema) -> str:
    """The range in words: `from 1 to 4096`, `above 0`, or the words one may write."""
    texts = []
    for choice in choices:
        if choice.get("type") == "array":
            texts.append(allowed(_alternatives(choice.get("items", {}), schema), schema))
        elif "enum" in choice:
            texts.append(" | ".join(plain(word) for word in choice["enum"]))
        elif "const" in choice:
            texts.append(plain(choice["const"]))
        elif choice.get("type") in ("integer", "number"):
            texts.append(_range(choice))
    return " or ".join(text for text in texts if text)


def _range(choice: Schema) -> str:
    """`from 1 to 4096`, `above 0, at most 10`, `at least 0, below 1`."""
    if "minimum" in choice and "maximum" in choice:
        return f"from {_number(choice['minimum'])} to {_number(choice['maximum'])}"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return ", ".join(f"{word} {_number(choice[bound])}" for bound, word in words.items() if bound in choice)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else plain(value)
