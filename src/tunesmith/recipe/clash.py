"""What a contradiction between settings is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Clash:
    """Two fields that do not go together, the key whose place is shown first, and the setting that ends it."""

    message: str
    fields: tuple[str, ...]
    set: dict[str, Any]
    code: str = "E014"
    effect: str | None = None
