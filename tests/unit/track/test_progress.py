"""What is shown while a run goes."""

import io

import pytest
from rich.console import Console

from tunesmith.track.progress import (
    LineProgress,
    NoProgress,
    PanelProgress,
    duration,
    make_progress,
    sparkline,
)

VALUES = {"train/loss": 1.5, "train/lr": 2e-4, "perf/tok_s": 1234.0, "train/grad_norm": 0.5, "mem/peak_gb": 4.2}


def console(*, terminal: bool, width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, highlight=False, _environ={})


def text_of(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


def test_lines_when_it_is_no_terminal(monkeypatch):
    shown = console(terminal=False)
    with make_progress(shown) as progress:
        progress.phase("loading model")
        progress.phase("preparing data", 100, 200)
        progress.phase("preparing data", 150, 200)
        progress.phase("preparing data", 200, 200)
        for step in range(1, 101):
            progress.step(step, 100, VALUES)
        progress.message("saved step-100")
    lines = text_of(shown).splitlines()
    assert lines[:3] == ["loading model", "preparing data 100/200", "preparing data 200/200"]
    assert lines[3] == "step 1/100  loss 1.5000  1,234 tokens/s  lr 2.00e-04  grad 0.50  4.20 GB"
    assert lines[4].startswith("step 100/100")
    assert lines[5:] == ["saved step-100"]
    assert "\x1b" not in text_of(shown)


def test_lines_come_at_intervals():
    shown = console(terminal=False)
    progress = LineProgress(shown, seconds=0.0)
    for step in range(1, 6):
        progress.step(step, 5, VALUES)
    assert len(text_of(shown).splitlines()) == 5
    assert "left" in text_of(shown)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_panel_fits_its_terminal(width):
    shown = console(terminal=True, width=width)
    progress = make_progress(shown)
    assert isinstance(progress, PanelProgress)
    with progress:
        progress.phase("preparing data", 3200, 10_000)
        for step in range(1, 51):
            progress.step(step, 100, {**VALUES, "train/loss": 3.0 / step})
        progress.phase("evaluating", 3, 10)
        plain = Console(file=io.StringIO(), width=width, highlight=False)
        plain.print(progress._render())
    lines = text_of(plain).splitlines()
    assert all(len(line) <= width for line in lines)
    assert "step 50/100" in lines[0]
    assert "0.0600" in text_of(plain)
    assert "evaluating 3/10" in text_of(plain)
    if width >= 80:
        assert len(lines) == 3
        assert "█" in lines[0]
        assert "1,234 tokens/s" in lines[1]


def test_utilisation_stands_beside_the_speed_where_there_is_room():
    values = {**VALUES, "perf/mfu": 0.42, "train/epoch": 0.5}
    shown = console(terminal=False)
    LineProgress(shown).step(1, 2, values)
    assert "1,234 tokens/s, 42% MFU  lr" in text_of(shown)
    for width, there in ((120, True), (80, True), (79, False), (60, False)):
        panel = PanelProgress(console(terminal=True, width=width))
        panel.step(1, 2, values)
        plain = Console(file=io.StringIO(), width=width, highlight=False)
        plain.print(panel._detail())
        assert ("42% MFU" in text_of(plain)) == there, width


def test_no_color_is_honoured(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    shown = Console(file=io.StringIO(), force_terminal=True, width=80, highlight=False)
    with make_progress(shown) as progress:
        progress.step(1, 2, VALUES)
    assert "\x1b[36m" not in text_of(shown)
    assert "\x1b[1;36m" not in text_of(shown)


def test_a_message_stays_above_the_panel():
    shown = console(terminal=True)
    with make_progress(shown) as progress:
        progress.step(1, 2, VALUES)
        progress.message("step 1: [bold]a record[/bold] was skipped")
    assert "step 1: [bold]a record[/bold] was skipped" in text_of(shown)


def test_other_ranks_show_nothing():
    assert isinstance(make_progress(quiet=True), NoProgress)


def test_odd_values_are_shown_as_they_are():
    shown = console(terminal=True)
    with make_progress(shown) as progress:
        progress.step(1, 0, {"train/loss": float("nan")})
        progress.step(2, 0, {"train/loss": float("inf")})
        progress.phase("waiting", 3)
    assert "inf" in text_of(shown)


def test_a_sparkline_shows_the_course():
    assert sparkline([], 8) == ""
    assert sparkline([1.0], 8) == "▁"
    assert sparkline([0.0, 1.0, float("nan")], 8) == "▁█"
    assert sparkline([3.0, 3.0], 8) == "▁▁"
    assert len(sparkline([float(number) for number in range(1000)], 16)) == 16
    assert sparkline([7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0], 8) == "█▇▆▅▄▃▂▁"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.4, "59s"), (75, "1m 15s"), (3725, "1h 02m"), (90000, "1d 01h")]
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text
