"""What pydantic found wrong, said in the recipe's own terms: place, field, what stands there, what may stand there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tunesmith.configuring.aliases import ALIASES, WORDS, normal
from tunesmith.configuring.catalogue import Setting, general_key, plain
from tunesmith.configuring.layers import Layers, dotted
from tunesmith.configuring.reader import Key
from tunesmith.errors import Diagnostic, Fix, UsageError, Where, nearest

_WORDS = {"integer": "an integer", "number": "a number", "text": "text", "word": "one of the words"}
LONGEST = 400  # characters about a key beside its error


def usage_error(diagnostics: list[Diagnostic]) -> UsageError:
    """One error that carries them all, the first in front."""
    first = diagnostics[0]
    error = UsageError(first.code, first.message, where=first.where, evidence=first.evidence, others=diagnostics[1:])
    error.diagnostic = first
    error.args = (str(first),)
    return error


def explain(error: ValidationError, layers: Layers, settings: Mapping[str, Setting]) -> UsageError:
    """The pydantic error as a UsageError with one diagnostic per fault."""
    faults: list[Diagnostic] = []
    for detail in error.errors(include_url=False):
        fault = _fault(detail, layers, settings)
        if fault not in faults:
            faults.append(fault)
    return usage_error(
        sorted(faults, key=lambda fault: (fault.where.line or 0, fault.where.column or 0) if fault.where else (0, 0))
    )


def place(layers: Layers, key: Key) -> Where:
    """Where the key was written, with the value that stands there."""
    origin = layers.origin(key)
    if origin.kind == "file":
        return replace(origin.where, field=dotted(key))
    return Where(field=dotted(key)) if origin.kind == "default" else origin.where


def data_key(location: tuple[int | str, ...], tree: Any) -> Key:
    """A pydantic location without the names of union variants, as a place in the tree."""
    key: Key = ()
    value: Any = tree
    for index, part in enumerate(location):
        if _holds(value, part):
            value = value[part]
        elif index + 1 < len(location) or not isinstance(value, dict):
            continue
        key = (*key, part)
    return key


def _holds(value: Any, part: int | str) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _fault(detail: ErrorDetails, layers: Layers, settings: Mapping[str, Setting]) -> Diagnostic:
    key = data_key(detail["loc"], layers.value)
    if detail["type"] == "extra_forbidden":
        return _unknown(key, detail["input"], layers, settings)
    if detail["type"] == "union_tag_invalid":
        tag = str(detail.get("ctx", {}).get("discriminator", "")).strip("'")
        return _wrong((*key, tag), _inner(detail["input"], tag), layers, settings)
    if detail["type"] == "missing":
        message = f"{dotted(key)} is required"
        return Diagnostic("E013", message, where=place(layers, key[:-1]), evidence=_meaning(key, layers, settings))
    if key == ("version",):
        return _version(detail["input"], layers)
    return _wrong(key, detail["input"], layers, settings)


def _inner(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else value


def _chosen(key: Key, layers: Layers) -> str:
    """The variant that the group of this key is of, or nothing."""
    group: Any = layers.value
    for part in key[:-1]:
        group = group[part] if _holds(group, part) else None
    tag = layers.unions.get(key[:-1], "name")
    return str(group.get(tag, "")) if isinstance(group, dict) else ""


def _setting(key: Key, layers: Layers, settings: Mapping[str, Setting]) -> Setting | None:
    """What the catalogue says of a key, as the chosen variant has it."""
    found = settings.get(general_key(key, settings))
    return found and (found.of(_chosen(key, layers)) or found)


def _meaning(key: Key, layers: Layers, settings: Mapping[str, Setting]) -> tuple[str, ...]:
    """What the catalogue says of a key; nothing where that is a page on every variant of a group."""
    setting = _setting(key, layers, settings)
    return (setting.text,) if setting and 0 < len(setting.text) <= LONGEST else ()


def _version(value: Any, layers: Layers) -> Diagnostic:
    message = f"the recipe is of version {_shown(value)}; this Tunesmith reads version 1"
    fixes = (Fix("set version: 1, or install the Tunesmith that wrote the recipe", {"version": 1}),)
    return Diagnostic("E018", message, where=place(layers, ("version",)), fixes=fixes)


def _wrong(key: Key, value: Any, layers: Layers, settings: Mapping[str, Setting]) -> Diagnostic:
    name = dotted(key)
    setting = _setting(key, layers, settings)
    where = place(layers, key)
    if setting is None:
        inside = _children(general_key(key, settings), settings)
        want = f"a group with {', '.join(inside[:8])}" if inside else "something else"
        return Diagnostic("E013", f"{name}: got {_shown(value)}, want {want}", where=where)
    range_ = f" {setting.allowed}" if setting.allowed else ""
    kind = " or ".join(_WORDS.get(part, part) for part in setting.type.split(" or "))
    fixes: list[Fix] = []
    word = WORDS.get((name, normal(value))) if isinstance(value, str) else None
    if word is not None:
        fix = Fix(" ".join(f"{key}={plain(each)}" for key, each in word.set.items()), dict(word.set))
        return Diagnostic("E013", f"{name}: got {_shown(value)}", "error", where, (word.note,), (fix,))
    if isinstance(value, str) and setting.allowed:
        like = nearest(value.lower(), setting.allowed.replace(" or ", " | ").split(" | "))
        if like:
            fixes.append(Fix(f"did you mean {name}: {like}?", {name: like}))
    message = f"{name}: got {_shown(value)}, want {kind}{range_}"
    return Diagnostic("E013", message, "error", where, _meaning(key, layers, settings), tuple(fixes))


def _shown(value: Any) -> str:
    text = plain(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _children(group: str, settings: Mapping[str, Setting]) -> list[str]:
    start = f"{group}." if group else ""
    return list(dict.fromkeys(key[len(start) :].partition(".")[0] for key in settings if key.startswith(start)))


def _unknown(key: Key, value: Any, layers: Layers, settings: Mapping[str, Setting]) -> Diagnostic:
    where = place(layers, key)
    word = str(key[-1])
    group = dotted(key[:-1])
    inside = f"in {group}" if group else "at the top of a recipe"
    message = f"unknown key {word} {inside}"
    there = settings.get(general_key(key, settings))
    if there is not None and there.variant:
        return _of_another(key, there, layers, settings)
    alias = ALIASES.get(normal(word))
    if alias is not None and alias.key not in (None, dotted(key)):
        fix = Fix(
            f"write {alias.key}: {_shown(value)}" if not alias.note else f"use {alias.key}", {str(alias.key): value}
        )
        evidence = (f"in Tunesmith this is {alias.key}" + (f": {alias.note}" if alias.note else ""),)
        return Diagnostic("E010", message, where=where, evidence=evidence, fixes=(fix,))
    if alias is not None and alias.key is None:
        return Diagnostic("E010", message, where=where, evidence=(alias.note,))
    known = _children(general_key(key[:-1], settings) if len(key) > 1 else "", settings)
    suggestion = _suggestion(key, known, settings)
    if suggestion:
        fix = Fix(f"did you mean {suggestion}?", {suggestion: value})
        return Diagnostic("E010", message, where=where, fixes=(fix,))
    evidence = (f"known keys here: {', '.join(known)}",) if known else ()
    return Diagnostic("E010", message, where=where, evidence=evidence)


def _of_another(key: Key, there: Setting, layers: Layers, settings: Mapping[str, Setting]) -> Diagnostic:
    """E010: the key exists, but not in the chosen variant of its group."""
    chosen, group, owners = _chosen(key, layers), dotted(key[:-1]), there.variant.split(", ")
    inside = general_key(key[:-1], settings)
    listed = {name: settings.get(f"{inside}.{name}") for name in _children(inside, settings)}
    known = [name for name, setting in listed.items() if setting is not None and setting.of(chosen)]
    tag = f"{group}.{layers.unions.get(key[:-1], 'name')}"
    like = nearest(str(key[-1]), [name for name in known if name != key[-1]])
    near = [f"did you mean {group}.{like}?"] if like else []
    return Diagnostic(
        "E010",
        f"{group}={chosen} has no key {key[-1]}; {', '.join(owners[:6])} {'has' if len(owners) == 1 else 'have'} it",
        where=place(layers, key),
        evidence=(f"keys of {chosen}: {', '.join(known)}",),
        fixes=(*map(Fix, near), Fix(f"{tag}={owners[0]}", {tag: owners[0]})),
    )


def _suggestion(key: Key, known: list[str], settings: Mapping[str, Setting]) -> str | None:
    """The key that was meant: written with dots, the same word in another group, a typo here, a typo elsewhere."""
    word = normal(str(key[-1]))
    if word in settings:
        return word
    elsewhere: dict[str, str] = {}
    for name in settings:
        elsewhere.setdefault(name.rpartition(".")[2], name)
    groups = {name.split(".")[index] for name in settings for index in range(name.count("."))} - {"N"}
    if word in elsewhere:
        return elsewhere[word]
    here, far = nearest(word, known), nearest(word, [*elsewhere, *groups])
    if here and (far is None or _likeness(word, here) + 0.1 > _likeness(word, far)):
        return dotted((*key[:-1], here))
    if far:
        return elsewhere.get(far, far)
    other = nearest(word, ALIASES)  # a typo in another tool's name
    return ALIASES[other].key if other else None


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()
