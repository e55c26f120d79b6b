"""A padding token that no text holds: transformers finds the end of a sequence by it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.models.safety import read_json_object

ROLES = ("bos_token", "eos_token", "cls_token", "sep_token", "mask_token")
SPARE = (re.compile(r"pad", re.I), re.compile(r"reserved|unused|placeholder|extra_id|dummy", re.I))


class PadToken(NamedTuple):
    id: int
    text: str


def free_pad(folder: Path) -> PadToken | None:
    """The tokenizer's own padding token, or when texts hold that (it may be their end) a control token they never hold.

    None when the tokenizer has none to spare.
    """
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    settings = optional_json(folder / "tokenizer_config.json")
    named = {**optional_json(folder / "special_tokens_map.json"), **settings}
    ids = {str(token.get("content")): token.get("id") for token in tokenizer.get("added_tokens") or []}
    taken = {text_of(named.get(role)) for role in ROLES} | stops(folder, ids)
    templates = template_text(folder, settings)
    free = [text for text in ids if text not in taken and text not in templates]
    own, unknown = text_of(named.get("pad_token")), text_of(named.get("unk_token"))
    spare = [text for pattern in SPARE for text in free if pattern.search(text)]
    last = [text for text in free if text != unknown]
    known = [unknown] if never_unknown(tokenizer) else []
    for text in (own, *spare, *known, *last):
        if text in free:
            return PadToken(int(ids[text]), text)
    return None


def stops(folder: Path, ids: dict[str, Any]) -> set[str]:
    """Texts of the tokens at which generation ends."""
    for name in ("generation_config.json", "config.json"):
        declared = optional_json(folder / name).get("eos_token_id")
        if declared is not None:
            listed = declared if isinstance(declared, list) else [declared]
            return {text for text, id in ids.items() if id in listed}
    return set()


def template_text(folder: Path, settings: dict[str, Any]) -> str:
    path = folder / "chat_template.jinja"
    own = path.read_text(encoding="utf-8") if path.is_file() else ""
    return own + json.dumps(settings.get("chat_template"), ensure_ascii=False)


def never_unknown(tokenizer: dict[str, Any]) -> bool:
    """Whether every text has tokens of its own, as in vocabularies of bytes."""
    model = tokenizer.get("model") or {}
    return bool(model.get("byte_fallback")) or "ByteLevel" in json.dumps(tokenizer.get("pre_tokenizer"))


def text_of(value: Any) -> str:
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else ""


def optional_json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def read_tokenizer(path: Path) -> dict[str, Any]:
    """tokenizer.json, which may be larger than other settings of a model folder; empty when there is none."""
    value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return value if isinstance(value, dict) else {}
