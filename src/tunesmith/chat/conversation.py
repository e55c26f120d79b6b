"""A conversation: what was said, what of it the models read, and what can be taken back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.chat.settings import ChatSettings
from tunesmith.chat.voice import Name, Voice
from tunesmith.errors import Diagnostic, Fix, ModelError
from tunesmith.types import Message

ROOM = 4  # an answer has room for its longest, or for this share of the context


@dataclass(frozen=True, slots=True)
class Turn:
    """A question with all that stands before it, what of this the models read, and what seeds the answer."""

    asked: tuple[Message, ...]
    seen: tuple[Message, ...]
    name: Name

    @property
    def number(self) -> int:
        return self.name[0]

    @property
    def text(self) -> str:
        return self.asked[-1].content


class Conversation:
    """The messages so far, which end with an answer; `settings` say how the next one is drawn."""

    def __init__(self, settings: ChatSettings, system: str | None = None) -> None:
        self.settings = settings
        self.messages: tuple[Message, ...] = ()
        self.left_out = 0  # of the oldest messages behind the system message
        self.asked: Counter[int] = Counter()  # how often each place has been asked at
        self.set_system(system)

    @property
    def system(self) -> str | None:
        return self.messages[0].content if self.messages and self.messages[0].role == "system" else None

    @property
    def turns(self) -> tuple[Message, ...]:
        return self.messages[self.system is not None :]

    @property
    def number(self) -> int:
        """Of the newest turn, counted from 1."""
        return sum(message.role == "user" for message in self.messages)

    def set_system(self, text: str | None) -> None:
        self.replace((*([] if text is None else [Message("system", text)]), *self.turns))

    def clear(self) -> None:
        """Forget what was said; the system message stays."""
        self.asked.clear()
        self.replace(self.messages[: self.system is not None])

    def replace(self, messages: Sequence[Message]) -> None:
        self.messages, self.left_out = tuple(messages), 0

    def ask(self, text: str, voices: Sequence[Voice]) -> tuple[Turn, list[Diagnostic]]:
        """The next turn, and a warning (W460) when older ones no longer fit.

        All voices read the same: what fits each of them. ModelError E150: the question alone is too long.
        """
        asked = (*self.messages, Message("user", text))
        before = self.left_out
        seen = self.fitting(asked, voices)
        left = self.left_out - before
        warnings = [forgotten(left, min(voice.context for voice in voices))] if left else []
        number = self.number + 1
        self.asked[number] += 1  # what is asked anew is drawn anew
        return Turn(asked, seen, (number, self.asked[number])), warnings

    def fitting(self, asked: Sequence[Message], voices: Sequence[Voice]) -> tuple[Message, ...]:
        """The system message and the newest turns that leave room for an answer; `left_out` grows by the others."""
        head = tuple(asked[: self.system is not None])
        turns = tuple(asked[len(head) :])
        begins = [at for at, message in enumerate(turns) if message.role == "user" and at >= self.left_out]
        for at in begins:
            seen = (*head, *turns[at:])
            if all(self.fits(seen, voice, last=at == begins[-1]) for voice in voices):
                self.left_out = at
                return seen
        context = min(voice.context for voice in voices)
        raise ModelError(
            "E150",
            f"your message does not fit: with the system message it has more tokens than the model's {context:,}",
            fixes=["shorten the message, or the system message: /system TEXT"],
        )

    def fits(self, seen: Sequence[Message], voice: Voice, *, last: bool) -> bool:
        """With room for an answer; the last question alone needs room for a single token."""
        room = 1 if last else min(self.settings.max_new_tokens, voice.context // ROOM)
        return len(voice.tokenizer.prompt_ids(seen)) + room <= voice.context

    def keep(self, turn: Turn, answer: str) -> None:
        self.messages = (*turn.asked, Message("assistant", answer))

    def undo(self) -> str | None:
        """Take the last question and what came of it back; the question, or None when there is none."""
        places = [at for at, message in enumerate(self.messages) if message.role == "user"]
        if not places:
            return None
        text = self.messages[places[-1]].content
        self.replace(self.messages[: places[-1]])
        return text


def forgotten(count: int, context: int) -> Diagnostic:
    told = f"the conversation no longer fits the {context:,} tokens of the model: it does not read the oldest"
    fixes = (Fix("say again what still matters"), Fix("/clear begins anew, /set max_new_tokens=N asks for less room"))
    return Diagnostic("W460", f"{told} {count} messages any more", "warning", fixes=fixes)
