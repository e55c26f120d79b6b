"""What becomes of one record when it is encoded, and what every way of encoding counts or refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tunesmith.data.config import DataConfig
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import DataError, Fix, ModelError, Where
from tunesmith.types import Example, Message, Task, Turns

IMITATION = Task()  # what records are to an objective that learns to say them


@dataclass(slots=True)
class Outcome:
    """What became of one record.

    `dropped` is "overlong", "zero_trained" or "identical" when nothing is left. `length` is that of the longest
    sequence (a prompt with one answer). `notes` counts: too_long (before the policy), cut, split, turns_lost, unrolled
    (extra examples for turns that the template rewrites later), shielded (control texts kept as text), straddled,
    unstopped, opened (answers that lack what the generation prompt opens), identical (answers that do not differ).
    """

    examples: list[Example] = field(default_factory=list)
    dropped: str | None = None
    length: int = 0
    notes: Counter[str] = field(default_factory=Counter)

    def close(self, examples: Sequence[Example]) -> Outcome:
        """Keep the examples that train something, and say why when none does."""
        self.examples = [example for example in examples if example.weights.any()]
        if not self.examples and self.dropped is None:
            self.dropped = "zero_trained" if examples or not self.notes["too_long"] else "overlong"
        self.notes = Counter({name: count for name, count in self.notes.items() if count})
        return self

    def note_control_text(self, found: str | None, settings: DataConfig) -> None:
        """Count a control text that was found in a record, or refuse it (E067)."""
        if found is None:
            return
        self.notes["shielded"] += 1
        if settings.special_tokens_in_text == "error":
            raise DataError(
                "E067",
                f"the text of this record holds the control token {found!r}",
                fixes=[
                    "remove it from the record",
                    Fix("keep it as plain text", {"data.special_tokens_in_text": "escape"}),
                ],
            )

    def note_overlong(self, length: int, settings: DataConfig) -> None:
        """Count a record that is too long, or refuse it (E070)."""
        self.notes["too_long"] += 1
        if settings.overlong == "error":
            raise DataError(
                "E070",
                f"the record has {length:,} tokens; data.max_length is {settings.max_length:,}",
                fixes=[
                    Fix("raise the limit", {"data.max_length": length}),
                    Fix("leave such records out", {"data.overlong": "drop"}),
                ],
            )


def control_text(tokenizer: Tokenizer, parts: Sequence[Turns], tools: Sequence[object] = ()) -> str | None:
    """The first control token that is written out in the texts of a record."""
    for part in parts:
        messages: Sequence[Message] = () if isinstance(part, str) else part
        found = tokenizer.control.find(part) if isinstance(part, str) else tokenizer.shield(messages).found
        if found is not None:
            return found
    return tokenizer.control.find(list(tools))


def end_of_text(tokenizer: Tokenizer) -> int:
    """The token that ends a text; ModelError E072 when the tokenizer has none."""
    if tokenizer.eos_id is None:
        raise ModelError(
            "E072",
            "this tokenizer names no end-of-text token, so the model would never learn to stop",
            where=Where(file=str(tokenizer.folder)),
            fixes=['name it in tokenizer_config.json: "eos_token": "..."'],
        )
    return tokenizer.eos_id
