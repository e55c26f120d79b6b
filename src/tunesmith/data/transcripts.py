"""HH-RLHF transcripts: whole dialogues as texts, `\n\nHuman: ... \n\nAssistant: ...`."""

from __future__ import annotations

import re

from tunesmith.data.fields import Fields, Placed
from tunesmith.types import Message, Role

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def is_transcript(value: object) -> bool:
    return isinstance(value, str) and value.startswith("\n\nHuman:")


def read_transcript(fields: Fields, name: str) -> Placed:
    """The turns of a transcript; the one space after a colon belongs to the mark, all else to the turn (E222)."""
    text, column = fields.text(name), fields.column(name)
    start, *parts = _TURN.split(text)
    if start or not parts:
        raise fields.error(name, f"{column} is no transcript: it does not begin with '\\n\\nHuman:'", "E222")
    roles, contents = parts[::2], parts[1::2]
    if roles[-1] != "Assistant":
        raise fields.error(name, f"{column} ends with a turn of the human: there is no answer to judge", "E222")
    return [
        (f"{column}[{index}]", Message(_ROLES[role], content.removeprefix(" ")))
        for index, (role, content) in enumerate(zip(roles, contents, strict=True))
    ]
