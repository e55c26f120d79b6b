"""The settings class of transformers for a clean config.json, or an error that names what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from tunesmith.errors import ModelError, Where, nearest
from tunesmith.models.headers import MAX_NAMED

TYPES = ("auto", "float16", "bfloat16", "float32", "float64")
COUNTED = re.compile(r"(num|n)_(\w+_)?(layers?|experts|blocks|heads|head)\Z")  # as many modules are made
MOST = 16_384


def build_config(clean: dict[str, Any], folder: Path) -> PreTrainedConfig:
    """The settings of a `config.json` that was read by `read_config`.

    Raises ModelError E510 for an architecture that transformers does not know, E084 for values that it cannot have.
    """
    where = Where(str(folder / "config.json"))
    kind = clean["model_type"]
    if kind not in CONFIG_MAPPING:
        raise unknown_architecture(kind, folder)
    for key, reason in _impossible(clean, frozenset(_methods(CONFIG_MAPPING[kind]))):
        raise ModelError("E084", f"{key} {reason}", where=Where(str(folder / "config.json"), field=key))
    try:
        return AutoConfig.for_model(**clean)
    except Exception as error:  # the classes check their values each in its own way
        told = " ".join(str(error).split())[:200]
        raise ModelError("E084", f"config.json: {told or type(error).__name__}", where=where) from error


def unknown_architecture(kind: str, folder: Path) -> ModelError:
    names = sorted(CONFIG_MAPPING)
    near = nearest(kind, names)
    fixes = [f"did you mean {near}? Then config.json should say so"] if near else []
    return ModelError(
        "E510",
        f"the installed transformers knows no models of the type {kind}",
        where=Where(str(folder / "config.json"), field="model_type"),
        evidence=[f"{len(names)} types are known, among them llama, mistral, qwen2, qwen3, gemma2, gemma3_text, phi3"],
        fixes=[*fixes, "use a model of a type that is known", "install a newer transformers"],
    )


def misshapen(model: dict[str, tuple[int, ...]], prefix: str, stored: dict[str, tuple[int, ...]]) -> list[str]:
    """Tensors of a file that have another shape in the model, a line each."""
    found = []
    for name, shape in sorted(stored.items()):
        for called in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
            if called in model and model[called] != shape:
                found.append(f"mis-shaped {name}: {list(shape)} in the file, {list(model[called])} by config.json")
                break
    return found


def lines_of(missing: list[str], unknown: list[str]) -> list[str]:
    """A line for each of the first names, with the one that was probably meant."""
    lines = []
    for kind, names, others in (("missing", missing, unknown), ("unknown", unknown, missing)):
        for name in sorted(names)[:MAX_NAMED]:
            near = nearest(name, sorted(others)[:1000])
            lines.append(f"{kind} {name}" + (f"; near to {near}" if near else ""))
    return lines


def _methods(kind: type) -> Iterator[str]:
    for owner in kind.__mro__:
        for name, value in vars(owner).items():
            if callable(value) or isinstance(value, classmethod | staticmethod):
                yield name


def _impossible(clean: dict[str, Any], methods: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Keys whose value would break the settings class, or make it build without end."""
    for key, value in clean.items():
        if key in methods:
            yield key, "is the name of a function, not of a setting"
        if COUNTED.match(key) and isinstance(value, int) and value > MOST:
            yield key, f"is {value:,}; no model has more than {MOST:,}"
    for key in ("dtype", "torch_dtype"):
        value = clean.get(key)
        if value is not None and not (isinstance(value, str) and value.removeprefix("torch.") in TYPES):
            yield key, f"is {str(value)[:40]!r}; want one of {', '.join(TYPES[1:])}"
