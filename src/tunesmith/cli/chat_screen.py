"""Where the lines of a conversation come from and its answers go: a terminal, or a pipe that gets nothing but text."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from tunesmith.controls import visible

if TYPE_CHECKING:
    from tunesmith.chat.voice import Spoken
    from tunesmith.chat.votes import Tally

WIDE = 100  # columns from which two answers stand side by side
LONGEST = 2000  # lines of history
QUOTES = '"""'  # around a message of several lines


class Screen:
    """`talks` where a person types; notes for a person go to stderr, answers to stdout, as JSON if asked."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.talks, self.paints, self.as_json = sys.stdin.isatty(), sys.stdout.isatty(), as_json
        self.pending: deque[str] = deque()

    def line(self, prompt: str) -> str | None:
        """The next message, without blanks around it; None at the end of input."""
        if self.pending:
            return self.pending.popleft()
        first = self.raw(prompt)
        if first is None or not first.startswith(QUOTES):
            return first
        parts = [first.removeprefix(QUOTES)]
        while not parts[-1].rstrip().endswith(QUOTES) and (more := self.raw("... ")) is not None:
            parts.append(more)
        return "\n".join(parts).strip().removesuffix(QUOTES).strip()

    def raw(self, prompt: str) -> str | None:
        if not self.talks:
            line = sys.stdin.readline()
            return line.strip() if line else None
        while True:
            try:
                if not self.paints:  # input() would write the prompt among the answers
                    sys.stderr.write(prompt)
                    sys.stderr.flush()
                return input(prompt if self.paints else "").strip()
            except EOFError:
                self.note("")
                return None
            except KeyboardInterrupt:
                self.note("\n/bye or Ctrl-D leaves")

    def piece(self, text: str) -> None:
        """Part of an answer, without control characters: a pipe may well end in a terminal."""
        if self.as_json:
            return
        sys.stdout.write(visible(text))
        sys.stdout.flush()

    def end(self) -> None:
        """The end of an answer that came in pieces, also of an empty one."""
        self.piece("\n")

    def note(self, text: str) -> None:
        """A remark for a person."""
        from tunesmith.cli.output import console

        if self.talks or text:
            console().print(text, style="dim", markup=False, highlight=False, soft_wrap=True)

    def spoken(self, spoken: Spoken) -> None:
        """How an answer was made."""
        if not self.talks or not spoken.made:
            return
        told = f"first token after {spoken.first_token_s:.2f} s, {spoken.made} tokens"
        if spoken.tokens_per_second:
            told += f", {spoken.tokens_per_second:.0f}/s"
        told += f"; {spoken.read} tokens read, {spoken.kept} known"
        if spoken.reason == "length":
            told += "; cut: /set max_new_tokens=N allows more"
        self.note(told)

    def told(self, content: dict[str, Any]) -> None:
        from tunesmith.cli.output import emit_json

        if self.as_json:
            emit_json(content)

    def duel(self, one: str, two: str) -> None:
        """Two answers under 1 and 2: side by side on a wide terminal, else one below the other."""
        if self.as_json:
            return
        if not self.paints:
            sys.stdout.write(visible(f"[1]\n{one}\n[2]\n{two}\n"))
            sys.stdout.flush()
            return
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        from tunesmith.terminal import Terminal

        panels = [Panel(Text(text, overflow="fold"), title=name) for name, text in (("1", one), ("2", two))]
        terminal = Terminal(highlight=False)
        if terminal.width < WIDE:
            for panel in panels:
                terminal.print(panel)
            return
        beside = Table.grid(expand=True, padding=(0, 1))
        for _ in panels:
            beside.add_column(ratio=1, overflow="fold")
        beside.add_row(*panels)
        terminal.print(beside)

    def tally(self, tally: Tally, path: str) -> None:
        """Who won how often: the names are told here, and nowhere before."""
        if self.as_json:
            self.told({"tally": tally.to_json(), "votes": path})
            return
        for line in tally_lines(tally, path):
            self.piece(f"{line}\n")


def tally_lines(tally: Tally, path: str) -> list[str]:
    (one, other), (won, lost), rate = tally.models, tally.wins, tally.rate
    if rate is None:
        return [f"no votes; the models were {one} and {other}"]
    lines = [f"{one}: {won} preferred   {other}: {lost} preferred   ties: {tally.ties}   both bad: {tally.bad}"]
    earlier = f", {tally.earlier} of them from before" if tally.earlier else ""
    votes = f"{rate.n} vote" if rate.n == 1 else f"{rate.n} votes"
    share = f"{rate.value:.0%} (95 % interval {rate.low:.0%} to {rate.high:.0%}) of {votes}{earlier}"
    lines.append(f"{one} is preferred in {share}, ties and both bad counting one half")
    if won + lost:
        lines.append(f"{path} holds the pairs: tunesmith train dpo data.train={path}")
    return lines


@contextmanager
def history(screen: Screen) -> Iterator[None]:
    """Lines typed before, on the arrow keys of a terminal; kept for the next conversation, for this user alone."""
    from tunesmith.paths import home

    if not screen.talks:
        yield
        return
    try:
        import readline
    except ImportError:  # a Python without it
        yield
        return
    path = home() / "chat-history"
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        readline.read_history_file(path)
    readline.set_history_length(LONGEST)
    try:
        yield
    finally:
        with suppress(OSError):
            readline.write_history_file(path)
