"""Checks merged layers against a settings class, reading words the way a person meant them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import ValidationError

from tunesmith.config import Config
from tunesmith.configuring.catalogue import catalogue
from tunesmith.configuring.layers import Layers, dotted
from tunesmith.configuring.problems import data_key, explain, place, usage_error
from tunesmith.configuring.reader import Key
from tunesmith.errors import Diagnostic

T = TypeVar("T", bound=Config)


def check(model: type[T], layers: Layers) -> T:
    """The settings, or a UsageError with one diagnostic per fault."""
    try:
        settings = model.model_validate(layers.value)
    except ValidationError as error:
        if not _mend(error, layers):
            raise explain(error, layers, catalogue(model.model_json_schema())) from error
        try:
            settings = model.model_validate(layers.value)
        except ValidationError as again:
            raise explain(again, layers, catalogue(model.model_json_schema())) from again
    _refuse_truth_as_number(settings, layers)
    return settings


def drop_unknown(model: type[Config], layers: Layers) -> dict[str, Any]:
    """Take out of the layers what a file says of keys that `model` does not have; returns it, leaf by leaf."""
    gone: dict[str, Any] = {}
    try:
        model.model_validate(layers.value)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            key = data_key(detail["loc"], layers.value)
            if detail["type"] != "extra_forbidden" or layers.origin(key).kind != "file":
                continue
            parent: Any = layers.value
            for part in key[:-1]:
                parent = parent[part]
            gone |= {dotted((*key, *inner)): value for inner, value in leaves(parent.pop(key[-1]))}
    return gone


def leaves(value: Any, at: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every leaf of plain data; an empty group or list is a leaf."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, (*at, name))
    elif isinstance(value, list | tuple) and value:
        for index, inner in enumerate(value):
            yield from leaves(inner, (*at, index))
    else:
        yield at, value


def _mend(error: ValidationError, layers: Layers) -> bool:
    """Read as meant: `name: 2024` where text is wanted, one word for a list, a group with nothing in it."""
    mended = False
    for detail in error.errors(include_url=False):
        key = data_key(detail["loc"], layers.value)
        if not key:
            continue
        parent: Any = layers.value
        for part in key[:-1]:
            parent = parent[part]
        if detail["type"] == "string_type" and isinstance(detail["input"], bool | int | float):
            text = layers.origin(key).text
            if text is not None and key in layers.origins:
                parent[key[-1]] = text
                mended = True
        elif detail["type"] == "tuple_type" and isinstance(detail["input"], str):
            parent[key[-1]] = [detail["input"]]
            mended = True
        elif detail["input"] is None and isinstance(parent, dict) and key[-1] in parent and _is_group(detail["type"]):
            del parent[key[-1]]
            mended = True
    return mended


def _is_group(kind: str) -> bool:
    return kind in ("model_type", "model_attributes_type")


def _refuse_truth_as_number(settings: Config, layers: Layers) -> None:
    """`steps: true` would be read as 1."""
    checked = dict(leaves(settings.model_dump()))
    wrong = [
        Diagnostic("E013", f"{dotted(key)}: got {str(value).lower()}, want a number", where=place(layers, key))
        for key, value in leaves(layers.value)
        if isinstance(value, bool) and isinstance(checked.get(key), int | float) and not isinstance(checked[key], bool)
    ]
    if wrong:
        raise usage_error(wrong)
