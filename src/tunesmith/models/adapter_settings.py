"""The settings of an adapter folder as data: without keys that fetch or import, and no pattern that could run long."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError, Unsafe, Where
from tunesmith.models.adapter_types import TENSORS, check_sides, read_adapter_object
from tunesmith.models.headers import MAX_NAMED, read_header
from tunesmith.models.safety import ADAPTER_CONFIG, is_hostile

PREFIX = "base_model.model."
# Keys by which PEFT imports a module by its name, or fetches a tokenizer; a trained adapter needs none of them.
FETCHING = frozenset(
    [
        "auto_mapping",
        "corda_config",
        "eva_config",
        "megatron_config",
        "megatron_core",
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "runtime_config",
        "tokenizer_kwargs",
        "tokenizer_name_or_path",
    ]
)
NAME = re.compile(r"[\w.-]{1,300}\Z")
LITTLE = re.compile(r"(?:[\w^$-]|\\?\.|\\d)*\Z")  # a pattern in which nothing repeats but the parts below
REPEATED = re.compile(r"\\d\+|\.\*\??")
MOST_REPEATED = 3
PARTS = re.compile(r"\.(?:lora_|ia3_l\b|vera_lambda_|oft_R|boft_|lora_magnitude_vector)")


def read_settings(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` for PEFT. Raises ModelError E084, E093, E094, and Unsafe E513 for slow patterns.

    Layers that are chosen by a pattern are named one by one instead, as the file of tensors has them.
    """
    path = folder / ADAPTER_CONFIG
    clean = {key: value for key, value in read_adapter_object(folder).items() if not _is_left_out(key, value)}
    check_sides(folder, clean)
    targets = clean.get("target_modules")
    if isinstance(targets, str) and targets != "all-linear" and not NAME.match(targets):
        clean["target_modules"] = _adapted(folder)
    for key, pattern in _patterns(clean):
        if not is_quick(pattern):
            raise Unsafe(
                "E513",
                f"{key} holds a pattern that is no name and could run for ever: {pattern[:80]!r}",
                where=Where(str(path), field=key),
                fixes=["write the names of the layers there"],
            )
    return clean


def is_quick(pattern: str) -> bool:
    """Whether a pattern of PEFT is a name, perhaps with `^`, `$`, `\\d+` and up to three times `.*`."""
    plain, repeated = REPEATED.subn("", pattern)
    return repeated <= MOST_REPEATED and len(pattern) <= 300 and LITTLE.match(plain) is not None


def _is_left_out(key: str, value: Any) -> bool:
    return value is not None and (is_hostile(key) or key in FETCHING)


def _adapted(folder: Path) -> list[str]:
    """Names of the layers whose tensors lie in the folder."""
    names = read_header(folder / TENSORS) if (folder / TENSORS).is_file() else {}
    found = {PARTS.split(name, maxsplit=1)[0].removeprefix(PREFIX) for name in names if PARTS.search(name)}
    if not found:
        raise ModelError(
            "E093",
            "target_modules is a pattern, and the folder holds no tensors that say which layers are meant",
            where=Where(str(folder / ADAPTER_CONFIG), field="target_modules"),
            evidence=sorted(names)[:MAX_NAMED],
            fixes=["write the names of the layers into target_modules"],
        )
    return sorted(found)


def _patterns(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every text of the settings that PEFT takes for a regular expression."""
    for key in ("exclude_modules", "layers_pattern", "modules_to_save", "rank_pattern", "alpha_pattern"):
        value = settings.get(key)
        for text in (value,) if isinstance(value, str) else value if isinstance(value, list | dict) else ():
            if isinstance(text, str):
                yield key, text
