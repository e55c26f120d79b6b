"""Secrets reach no file and no screen: what looks like one, or is the value of one in the environment, is covered."""

from __future__ import annotations

import os
import re
import time
from functools import lru_cache
from typing import Any

COVER = "[secret]"
SHORTEST = 8  # shorter values would be found in every text
NAMING = {"KEY", "APIKEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASS", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS"}
PLACES = {"PATH", "FILE", "DIR", "FOLDER", "SOCK"}  # endings of names whose value only says where a secret is

# Every pattern is linear in the length of the text.
SHAPES = re.compile(
    r"hf_[A-Za-z0-9]{16,}"
    r"|sk-[A-Za-z0-9_-]{16,}"
    r"|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}"
    r"|glpat-[A-Za-z0-9_-]{16,}"
    r"|(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"
)
BEARER = re.compile(r"(?i)\b(bearer|authorization: ?basic) +[A-Za-z0-9._~+/=-]{16,}")
IN_ADDRESS = re.compile(r"://[^\s/:@\\\"']{1,200}:[^\s/@\\\"']{1,200}@")
NAMED = re.compile(
    r"(?i)\b((?:api|access|auth|private|secret)[_-]?(?:key|token)|passw(?:or)?d|passphrase|client[_-]?secret)"
    r"([\"']?\s?[=:]\s?[\"']?)([^\s\"',;&\\\[\]{}]{8,})"
)


# What a pattern needs: looking for these first makes a line without secrets cost a few microseconds.
MARKS = ("hf_", "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "AKIA", "ASIA", "xox", "glpat-", "eyJ")
NAMES = ("api", "access", "auth", "private", "secret", "passw", "passphrase")


def redacted(text: str) -> str:
    """The text with every secret covered; the environment is looked at once a second."""
    values = known_values(int(time.monotonic()))
    if values is not None:
        text = values.sub(COVER, text)
    if any(mark in text for mark in MARKS):
        text = SHAPES.sub(COVER, text)
    if "://" in text:
        text = IN_ADDRESS.sub(f"://{COVER}@", text)
    lower = text.lower()
    if "bearer" in lower or "basic" in lower:
        text = BEARER.sub(lambda found: f"{found[1]} {COVER}", text)
    if any(name in lower for name in NAMES):
        text = NAMED.sub(lambda found: f"{found[1]}{found[2]}{COVER}", text)
    return text


def redacted_tree(value: Any) -> Any:
    """The same of every text in plain data, keys left as they are."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {key: redacted_tree(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_tree(inner) for inner in value]
    return value


def names_a_secret(name: str) -> bool:
    parts = name.upper().split("_")
    return parts[-1] not in PLACES and not NAMING.isdisjoint(parts)


@lru_cache(maxsize=1)
def known_values(second: int) -> re.Pattern[str] | None:
    """One pattern for the secrets of the environment, longest first, also as JSON writes them; None without any."""
    found = {value for name, value in os.environ.items() if names_a_secret(name) and len(value) >= SHORTEST}
    escaped = {form for value in found for form in (value, value.replace("\\", "\\\\").replace('"', '\\"'))}
    longest_first = sorted(escaped, key=lambda value: (-len(value), value))
    return re.compile("|".join(map(re.escape, longest_first))) if escaped else None
