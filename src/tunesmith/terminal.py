"""The one console: whatever is printed on it, no text of a file, a model or a name can drive the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from tunesmith.controls import visible


class Terminal(Console):
    """A console whose own control codes pass, and those of the texts on it do not."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)
