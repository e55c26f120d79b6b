"""Text of tokens that come one at a time: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tunesmith.data.tokenizer import Tokenizer

Mark = TypeVar("Mark")


class GrowingText:
    """The text that each further token adds; what ends in an unfinished character waits for its remaining bytes."""

    def __init__(self, tokenizer: Tokenizer, marks: frozenset[int] = frozenset()) -> None:
        """`marks`: control tokens that are shown."""
        self.tokenizer, self.marks = tokenizer, marks
        self.ids: list[int] = []
        self.shown, self.start = 0, 0  # tokens already told, and the context before them that decoding needs

    def add(self, token: int) -> str:
        self.ids.append(token)
        before, now = self.both()
        if len(now) > len(before) and not now.endswith("�"):
            self.start, self.shown = self.shown, len(self.ids)
            return now[len(before) :]
        return ""

    def end(self) -> str:
        """What was still waiting."""
        before, now = self.both()
        self.shown = len(self.ids)
        return now[len(before) :]

    def both(self) -> tuple[str, str]:
        before = self.tokenizer.decode(self.ids[self.start : self.shown], skip_special=True, shown=self.marks)
        return before, self.tokenizer.decode(self.ids[self.start :], skip_special=True, shown=self.marks)


@dataclass(slots=True)
class StopFinder(Generic[Mark]):
    """Lets text through up to the first stop string, and holds back what may be the beginning of one.

    Every token leaves a mark, which comes out with the last of its text; those of a stop string never do.
    """

    stops: Sequence[str]
    text: str = ""  # held back
    marks: list[tuple[int, Mark]] = field(default_factory=list)  # with the end of each in the text held back
    found: bool = False

    def add(self, text: str, mark: Mark) -> tuple[str, list[Mark]]:
        self.text += text
        self.marks.append((len(self.text), mark))
        places = [at for at in (self.text.find(stop) for stop in self.stops) if at >= 0]
        self.found = bool(places)
        return self.let_go(min(places) if places else len(self.text) - self.held())

    def end(self, text: str = "") -> tuple[str, list[Mark]]:
        """All that was held back, with the text that no token is left to bring."""
        if self.found:
            return "", []
        self.text += text
        places = [at for at in (self.text.find(stop) for stop in self.stops) if at >= 0]
        self.found = bool(places)
        return self.let_go(min(places) if places else len(self.text))

    def held(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        ends = range(min(longest, len(self.text)), 0, -1)
        return next((n for n in ends if any(stop.startswith(self.text[-n:]) for stop in self.stops)), 0)

    def let_go(self, count: int) -> tuple[str, list[Mark]]:
        out, self.text = self.text[:count], self.text[count:]
        gone = [mark for end, mark in self.marks if end <= count]
        self.marks = [(end - count, mark) for end, mark in self.marks if end > count]
        return out, gone
