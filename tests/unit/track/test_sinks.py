"""Sinks that fail, hang or print: the run neither stops, slows nor loses a row."""

import sys
import threading
import time

import pytest

from tunesmith.errors import MachineError
from tunesmith.track.adapters import ADAPTERS, flat, make_sinks, metrics
from tunesmith.track.reader import read_lines, read_metrics
from tunesmith.track.run_dir import RunDir
from tunesmith.track.sinks import PATIENCE, About, Sink, finish_all
from tunesmith.track.tracker import Tracker


class Collecting:
    """Keeps what it is told; `before` runs ahead of every call and may raise or block."""

    def __init__(self, before=None):
        self.before = before or (lambda kind: None)
        self.calls = []

    def start(self, about):
        self.before("start")
        self.calls.append(("start", about.id))

    def log(self, row):
        self.before("log")
        self.calls.append(("log", row["step"]))

    def completion(self, row):
        self.before("completion")
        self.calls.append(("completion", row["step"]))

    def finish(self, exit_code):
        self.before("finish")
        self.calls.append(("finish", exit_code))


def started(adapter, tmp_path, capacity=1024) -> Sink:
    sink = Sink("test", adapter, capacity)
    sink.start(About("run", tmp_path))
    return sink


def raise_at(*kinds):
    def before(kind):
        if kind in kinds:
            raise ConnectionError(f"no network in {kind}\nsecond line")

    return before


def block_at(event, *kinds):
    def before(kind):
        if kind in kinds:
            event.wait()

    return before


def slow_call(tracker, rows: int) -> float:
    """The 99th percentile of the seconds a row takes; the best of five parts, because other work shares the machine."""
    parts = []
    for part in range(5):
        times = []
        for step in range(part * rows // 5 + 1, (part + 1) * rows // 5 + 1):
            begin = time.perf_counter()
            tracker.metrics(step, step * 10, {"train/loss": 1.0 / step, "train/lr": 1e-4, "perf/tok_s": 300.0})
            times.append(time.perf_counter() - begin)
        parts.append(sorted(times)[-len(times) // 100])
    return min(parts)


def test_a_sink_is_told_everything_in_order(tmp_path):
    adapter = Collecting()
    sink = started(adapter, tmp_path)
    sink.log({"step": 1})
    sink.completion({"step": 1})
    sink.log({"step": 2})
    report = sink.finish(0)
    assert adapter.calls == [("start", "run"), ("log", 1), ("completion", 1), ("log", 2), ("finish", 0)]
    assert (report.sent, report.lost, report.failure, report.finished) == (3, 0, "", True)


@pytest.mark.parametrize("kinds", [("start",), ("log", "completion"), ("finish",), ("start", "log", "finish")])
def test_a_sink_that_raises_never_reaches_the_run(tmp_path, kinds):
    run = RunDir.create(tmp_path, "a")
    tracker = Tracker(run, [started(Collecting(raise_at(*kinds)), tmp_path)])
    for step in range(1, 51):
        tracker.metrics(step, step, {"train/loss": 1.0})
        tracker.completion(step, "p", "c")
    (report,) = tracker.finish("finished", 0)
    assert [row["step"] for row in read_metrics(run.metrics_file)] == list(range(1, 51))
    assert "ConnectionError: no network" in report.failure
    assert "second line" not in report.failure
    assert not report.finished
    assert run.read_status().state == "finished"
    ends = [row for row in read_lines(run.events_file) if row["event"] == "sink"]
    assert ends == [{**ends[0], "name": "test", "failure": report.failure, "lost": report.lost}]
    assert report.lost == (0 if kinds == ("finish",) else 100)


def test_a_sink_that_exits_or_recovers(tmp_path):
    calls = []

    def before(kind):
        calls.append(kind)
        if kind == "log" and len(calls) % 2:
            raise SystemExit(3)

    adapter = Collecting(before)
    sink = started(adapter, tmp_path)
    for step in range(20):
        sink.log({"step": step})
    report = sink.finish(0)
    assert report.sent == 10
    assert report.lost == 10
    assert report.finished
    assert "SystemExit" in report.failure


def test_a_sink_is_given_up_after_failures_in_a_row(tmp_path):
    calls = []

    def before(kind):
        calls.append(kind)
        if kind == "log":
            raise OSError("gone")

    sink = started(Collecting(before), tmp_path)
    for step in range(50):
        sink.log({"step": step})
    sink.finish(0)
    assert calls.count("log") == PATIENCE


@pytest.mark.parametrize("kind", ["start", "log"])
def test_a_sink_that_blocks_for_ever_and_a_full_queue_cost_less_than_a_millisecond(tmp_path, kind):
    never = threading.Event()
    run = RunDir.create(tmp_path, "a")
    sink = started(Collecting(block_at(never, kind)), tmp_path, capacity=16)
    tracker = Tracker(run, [sink])
    assert slow_call(tracker, 2000) < 1e-3
    begin = time.monotonic()
    (report,) = finish_all([sink], 0, seconds=0.3)
    assert time.monotonic() - begin < 1.0
    assert report.lost == 2000
    assert not report.finished
    assert "not done within" in report.failure
    assert [row["step"] for row in read_metrics(run.metrics_file)] == list(range(1, 2001))
    never.set()


def test_a_slow_sink_drops_and_counts_while_the_run_keeps_everything(tmp_path):
    adapter = Collecting(lambda kind: time.sleep(0.005))
    run = RunDir.create(tmp_path, "a")
    tracker = Tracker(run, [started(adapter, tmp_path, capacity=8)])
    for step in range(1, 501):
        tracker.metrics(step, step, {"train/loss": 1.0})
    (report,) = tracker.finish("finished", 0)
    told = [step for kind, step in adapter.calls if kind == "log"]
    assert report.finished
    assert report.sent == len(told)
    assert report.sent + report.lost == 500
    assert report.lost > 0
    assert told == sorted(told)
    assert len(read_metrics(run.metrics_file)) == 500


def test_all_sinks_share_one_time_limit(tmp_path):
    never = threading.Event()
    sinks = [started(Collecting(block_at(never, "finish")), tmp_path) for _ in range(4)]
    begin = time.monotonic()
    reports = finish_all(sinks, 0, seconds=0.5)
    assert time.monotonic() - begin < 1.0
    assert [report.finished for report in reports] == [False] * 4
    never.set()


def test_what_a_sink_prints_stays_off_stdout(tmp_path, capsys):
    ready, go = threading.Event(), threading.Event()

    def before(kind):
        print("noise", kind)
        ready.set()
        go.wait(5)

    real = sys.stdout
    sink = started(Collecting(before), tmp_path)
    ready.wait(5)
    print("answer")
    go.set()
    sink.log({"step": 1})
    assert sink.finish(0).finished
    assert capsys.readouterr().out == "answer\n"
    assert sys.stdout is real


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_a_missing_package_is_told_before_anything_starts(name, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(MachineError) as caught:
        make_sinks(("tensorboard", name))
    assert caught.value.diagnostic.code == "E172"
    assert caught.value.diagnostic.fixes[0].command == f"pip install {name}"


def test_tensorboard_and_none_are_no_sinks():
    assert make_sinks(("tensorboard", "none")) == []


def test_only_finite_numbers_are_sent():
    row = {"step": 3, "wall": 1.0, "attempt": 1, "tokens": 30, "train/loss": float("nan"), "train/lr": 0.5, "x": "NaN"}
    assert metrics(row) == {"tokens": 30.0, "train/lr": 0.5}


def test_settings_become_dotted_texts():
    assert flat({"a": {"b": 1, "c": [1, 2]}, "d": None}) == {"a.b": "1", "a.c": "[1, 2]", "d": "None"}
