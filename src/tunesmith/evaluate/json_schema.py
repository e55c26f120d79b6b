"""Whether a JSON value has the shape that a schema asks for: the keywords of JSON Schema that describe plain data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from tunesmith.errors import Diagnostic, UsageError, Where, nearest

Check = Callable[[Any, Any, Mapping[str, Any]], bool]

NOTES = {"$schema", "$id", "title", "description", "default", "examples", "$comment"}  # say nothing about a value
DEEPEST = 64


def fits(value: Any, schema: Any) -> bool:
    """Whether the value is valid; a schema of `check_schema`, booleans included."""
    if isinstance(schema, bool):
        return schema
    return all(CHECKS[word](value, wanted, schema) for word, wanted in schema.items() if word in CHECKS)


def check_schema(schema: Any, where: Where, depth: int = 0) -> None:
    """UsageError E460 for a keyword that is not known here: a rule that is passed over would make answers right."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping) or depth > DEEPEST:
        raise bad_schema("a schema is an object of keywords, or true or false", where)
    for word, wanted in schema.items():
        if word in NOTES:
            continue
        if word not in CHECKS:
            near = nearest(str(word), CHECKS)
            raise bad_schema(f"the keyword {word} is not known here", where, near and f"did you mean {near}?")
        if not FORMS[word](wanted):
            raise bad_schema(f"{word}: {wanted!r} cannot stand there", where)
        for part in inside(word, wanted):
            check_schema(part, where, depth + 1)


def inside(word: str, wanted: Any) -> list[Any]:
    """The schemas that a keyword holds."""
    if word == "properties":
        return list(wanted.values())
    if word in ("anyOf", "allOf", "oneOf"):
        return list(wanted)
    return [wanted] if word in ("items", "not", "additionalProperties") else []


def bad_schema(message: str, where: Where, fix: str | None = None) -> UsageError:
    listed = Diagnostic("E460", message, where=where, evidence=(f"known: {', '.join(sorted(CHECKS))}",))
    return UsageError("E460", message, where=where, evidence=listed.evidence, fixes=[fix] if fix else [])


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "number": is_number,
    "integer": lambda value: is_number(value) and value == int(value),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


def of_type(value: Any, wanted: Any, _: Mapping[str, Any]) -> bool:
    return any(TYPES[name](value) for name in ([wanted] if isinstance(wanted, str) else wanted))


def same(one: Any, other: Any) -> bool:
    """Equality of JSON: 1 is 1.0, and neither is true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def has_properties(value: Any, wanted: Any, _: Mapping[str, Any]) -> bool:
    return not isinstance(value, dict) or all(fits(value[key], part) for key, part in wanted.items() if key in value)


def has_no_others(value: Any, wanted: Any, schema: Mapping[str, Any]) -> bool:
    known = schema.get("properties", {})
    return not isinstance(value, dict) or all(fits(part, wanted) for key, part in value.items() if key not in known)


def all_fit(value: Any, wanted: Any, _: Mapping[str, Any]) -> bool:
    return not isinstance(value, list) or all(fits(part, wanted) for part in value)


def differ(value: Any, wanted: Any, _: Mapping[str, Any]) -> bool:
    if not wanted or not isinstance(value, list):
        return True
    return not any(same(one, other) for at, one in enumerate(value) for other in value[at + 1 :])


def number_rule(holds: Callable[[float, float], bool]) -> Check:
    return lambda value, wanted, _: not is_number(value) or holds(value, wanted)


def size_rule(kind: type, holds: Callable[[int, int], bool]) -> Check:
    return lambda value, wanted, _: not isinstance(value, kind) or holds(len(value), wanted)


def is_pattern(wanted: Any) -> bool:
    try:
        return isinstance(wanted, str) and re.compile(wanted) is not None
    except re.error:
        return False


def is_type(wanted: Any) -> bool:
    names = wanted if isinstance(wanted, list) else [wanted]
    return bool(names) and all(isinstance(name, str) and name in TYPES for name in names)


def is_size(wanted: Any) -> bool:
    return TYPES["integer"](wanted) and wanted >= 0


CHECKS: dict[str, Check] = {
    "type": of_type,
    "enum": lambda value, wanted, _: any(same(value, one) for one in wanted),
    "const": lambda value, wanted, _: same(value, wanted),
    "properties": has_properties,
    "required": lambda value, wanted, _: not isinstance(value, dict) or all(key in value for key in wanted),
    "additionalProperties": has_no_others,
    "items": all_fit,
    "uniqueItems": differ,
    "minItems": size_rule(list, lambda count, least: count >= least),
    "maxItems": size_rule(list, lambda count, most: count <= most),
    "minLength": size_rule(str, lambda count, least: count >= least),
    "maxLength": size_rule(str, lambda count, most: count <= most),
    "pattern": lambda value, wanted, _: not isinstance(value, str) or re.search(wanted, value) is not None,
    "minimum": number_rule(lambda value, least: value >= least),
    "maximum": number_rule(lambda value, most: value <= most),
    "exclusiveMinimum": number_rule(lambda value, limit: value > limit),
    "exclusiveMaximum": number_rule(lambda value, limit: value < limit),
    "anyOf": lambda value, wanted, _: any(fits(value, part) for part in wanted),
    "allOf": lambda value, wanted, _: all(fits(value, part) for part in wanted),
    "oneOf": lambda value, wanted, _: sum(fits(value, part) for part in wanted) == 1,
    "not": lambda value, wanted, _: not fits(value, wanted),
}
FORMS: dict[str, Callable[[Any], bool]] = {
    "type": is_type,
    "enum": TYPES["array"],
    "const": lambda _: True,
    "properties": TYPES["object"],
    "required": TYPES["array"],
    "additionalProperties": lambda _: True,
    "items": lambda _: True,
    "uniqueItems": TYPES["boolean"],
    **dict.fromkeys(("minItems", "maxItems", "minLength", "maxLength"), is_size),
    "pattern": is_pattern,
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), is_number),
    **dict.fromkeys(("anyOf", "allOf", "oneOf"), TYPES["array"]),
    "not": lambda _: True,
}
