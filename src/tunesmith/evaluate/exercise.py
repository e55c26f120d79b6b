"""One exercise of a task: what is asked, what would be right, and the fields that scorers read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import DataError, Where

HOLE = re.compile(r"(?<!\{)\{(\w+)\}(?!\})")


@dataclass(frozen=True, slots=True)
class Exercise:
    """`name` is the same for every model, so that results can be paired; `answers` are all that count as right.

    Of a choice, `right` is the place of the right one among `choices`. `fields` is the record as it was written.
    """

    name: str
    prompt: str
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    right: int = -1
    category: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    where: Where = field(default_factory=Where)

    @property
    def reference(self) -> str:
        return self.answers[0] if self.answers else ""


def lacks(where: Where, name: str, wants: str, *fixes: str) -> DataError:
    """E452: the record has no such field, or holds something else there."""
    message = f"the exercise has no {name}: {wants}"
    return DataError("E452", message, where=where, fixes=fixes or (f"give every exercise a field {name}",))


def filled(template: str, value: Mapping[str, Any], where: Where, told: str = "the prompt of the task names it") -> str:
    """The template with the fields of the exercise; other braces stay as they are."""

    def field(match: re.Match[str]) -> str:
        held = value.get(match[1])
        if held is None or isinstance(held, dict):
            raise lacks(where, match[1], told)
        return "\n".join(map(str, held)) if isinstance(held, list) else str(held)

    return HOLE.sub(field, template)
