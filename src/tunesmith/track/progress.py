"""What a person sees while a run goes: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from tunesmith.redaction import redacted
from tunesmith.terminal import Terminal
from tunesmith.track.status import Pace

BARS = "▁▂▃▄▅▆▇█"
PLAIN_SECONDS = 10.0
BETWEEN = "  ·  "
SPEED, UTILISATION = "perf/tok_s", "perf/mfu"
LESS = ("train/loss", UTILISATION)  # left out of the panel's second line where it is narrow


class Progress(Protocol):
    """Used inside `with`; every call is cheap and none raises for an odd value."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def phase(self, text: str, done: int | None = None, total: int | None = None) -> None:
        """What goes on before and between steps: `phase("preparing data", 3200, 10_000)`."""
        ...

    def step(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """A finished step with its metrics, named as in `metrics.jsonl`."""
        ...

    def message(self, text: str) -> None:
        """A line that stays."""
        ...


def make_progress(console: Console | None = None, *, quiet: bool = False) -> Progress:
    """The panel on a terminal, lines elsewhere, nothing when `quiet` (ranks other than the first)."""
    shown = console or Terminal(stderr=True, highlight=False)
    if quiet:
        return NoProgress()
    return PanelProgress(shown) if shown.is_terminal and not shown.is_dumb_terminal else LineProgress(shown)


class NoProgress:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def phase(self, text: str, done: int | None = None, total: int | None = None) -> None:
        pass

    def step(self, step: int, total: int, values: Mapping[str, float]) -> None:
        pass

    def message(self, text: str) -> None:
        pass


class LineProgress:
    """One line per phase, and one per `seconds` of steps; the first and the last step are always told."""

    def __init__(self, console: Console, seconds: float = PLAIN_SECONDS) -> None:
        self._console = console
        self._seconds = seconds
        self._told = -seconds
        self._phase = ""
        self._pace = Pace()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def phase(self, text: str, done: int | None = None, total: int | None = None) -> None:
        now = time.monotonic()
        if text == self._phase and now - self._told < self._seconds and done != total:
            return
        self._phase, self._told = text, now
        self.message(_phase_text(text, done, total))

    def step(self, step: int, total: int, values: Mapping[str, float]) -> None:
        self._pace.note(step)
        now = time.monotonic()
        if self._phase == "steps" and now - self._told < self._seconds and step != total:
            return
        self._phase, self._told = "steps", now
        parts = [f"step {step:,}/{total:,}", *_figures(values), *_left(self._pace.remaining(total))]
        self.message("  ".join(parts))

    def message(self, text: str) -> None:
        self._console.print(Text(redacted(text)), soft_wrap=True)


class PanelProgress:
    """Two live lines: a bar with loss, its course and the time left; speed, rate, norm and memory below."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase = ""
        self._done: int | None = None
        self._of: int | None = None
        self._step = 0
        self._total = 0
        self._values: dict[str, float] = {}
        self._losses: deque[float] = deque(maxlen=512)
        self._pace = Pace()
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._phase = ""
        self._live.stop()

    def phase(self, text: str, done: int | None = None, total: int | None = None) -> None:
        self._phase, self._done, self._of = text, done, total

    def step(self, step: int, total: int, values: Mapping[str, float]) -> None:
        self._pace.note(step)
        self._phase = ""
        self._step, self._total = step, total
        self._values.update(values)
        if "train/loss" in values:
            self._losses.append(values["train/loss"])

    def message(self, text: str) -> None:
        self._live.console.print(Text(redacted(text)), soft_wrap=True)

    def _render(self) -> RenderableType:
        lines: list[RenderableType] = []
        if self._step:
            lines += [self._bar(), self._detail()]
        if self._phase:
            self._spinner.update(text=Text(_phase_text(self._phase, self._done, self._of), style="dim"))
            lines.append(self._spinner)
        return Group(*lines)

    def _bar(self) -> RenderableType:
        step = Text(f"step {self._step:,}/{self._total:,}", style="bold")
        loss = Text(f"loss {self._values.get('train/loss', float('nan')):.4f}", style="bold cyan")
        left = Text("".join(_left(self._pace.remaining(self._total))))
        if self._console.width < 76:
            return Text("  ", no_wrap=True, overflow="ellipsis").join([step, loss, left])
        bar = ProgressBar(self._total, self._step, width=22, complete_style="cyan")
        grid = Table.grid(padding=(0, 2))
        grid.add_row(step, bar, loss, Text(sparkline(list(self._losses), 14), style="cyan"), left)
        return grid

    def _detail(self) -> RenderableType:
        figures = [figure for figure in _figures(self._values) if not figure.startswith("loss")]
        if len(BETWEEN.join(figures)) > self._console.width:
            figures = _figures({name: value for name, value in self._values.items() if name not in LESS})
        return Text(BETWEEN.join(figures), style="dim", no_wrap=True, overflow="ellipsis")


def sparkline(values: list[float], width: int) -> str:
    """The course of `values` in `width` characters, each the mean of its share; non-finite ones are left out."""
    finite = [value for value in values if value - value == 0.0]
    if not finite:
        return ""
    size = max(1, -(-len(finite) // width))
    means = [sum(finite[at : at + size]) / len(finite[at : at + size]) for at in range(0, len(finite), size)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def duration(seconds: float) -> str:
    """`3725` as `1h 02m`, `75` as `1m 15s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def _phase_text(text: str, done: int | None, total: int | None) -> str:
    if done is None:
        return text
    return f"{text} {done:,}" + (f"/{total:,}" if total is not None else "")


def _left(seconds: float | None) -> list[str]:
    return [] if seconds is None else [f"{duration(seconds)} left"]


def _figures(values: Mapping[str, float]) -> list[str]:
    """The metrics worth a glance, as far as they are there."""
    shapes = (
        ("train/loss", "loss {:.4f}"),
        ("eval/loss", "eval {:.4f}"),
        ("train/rewards/accuracy", "accuracy {:.0%}"),
        ("train/rewards/margin", "margin {:.3f}"),
        (SPEED, "{:,.0f} tokens/s"),
        ("train/lr", "lr {:.2e}"),
        ("train/grad_norm", "grad {:.2f}"),
        ("mem/peak_gb", "{:.2f} GB"),
        ("train/epoch", "epoch {:.2f}"),
    )
    figures = {name: shape.format(values[name]) for name, shape in shapes if name in values}
    if SPEED in figures and UTILISATION in values:
        figures[SPEED] += f", {values[UTILISATION]:.0%} MFU"
    return list(figures.values())
