"""The tracker as the loop uses it: rows, events, resume, the end."""

import time

import pytest
from tests.unit.track.test_event_files import points

from tunesmith import faults
from tunesmith.errors import MachineError
from tunesmith.track import NullTracker, RunDir, Tracker, Tracking, open_tracker
from tunesmith.track.index import summarise
from tunesmith.track.reader import read_lines, read_metrics


@pytest.fixture(autouse=True)
def _no_faults_left():
    yield
    faults.arm("")


def steps(tracker: Tracking, first: int, last: int) -> None:
    for step in range(first, last + 1):
        tracker.metrics(step, step * 100, {"train/loss": 1.0 / step, "train/lr": 1e-4})


def test_every_row_has_step_tokens_wall_and_attempt(tmp_path):
    run = RunDir.create(tmp_path, "a")
    with open_tracker(run, ["none"], 1) as tracker:
        steps(tracker, 1, 2)
        tracker.metrics(2, 200, {"eval/loss": 0.5})
    rows = read_metrics(run.metrics_file)
    assert [(row["step"], row["tokens"], row["attempt"]) for row in rows] == [(1, 100, 1), (2, 200, 1), (2, 200, 1)]
    assert all(abs(row["wall"] - time.time()) < 60 for row in rows)
    assert not run.tensorboard.exists()


def test_r17_a_killed_run_goes_on_in_every_file(tmp_path):
    run = RunDir.create(tmp_path, "a")
    run.write_run({})
    first = open_tracker(run, ["tensorboard"], run.next_attempt())
    steps(first, 1, 50)
    first.flush()
    saved_at = first.offset()
    steps(first, 51, 80)
    first.completion(40, "p", "kept")
    first.completion(60, "p", "replaced")
    with run.metrics_file.open("rb+") as file:  # the kill: no finish, and the last line is torn
        file.truncate(run.metrics_file.stat().st_size - 11)
    assert run.metrics_file.stat().st_size > saved_at

    second = open_tracker(run, ["tensorboard"], run.next_attempt())
    second.heal(51)
    assert run.read_status().step == 50
    steps(second, 51, 120)
    second.completion(60, "p", "again")
    second.finish("finished", 0)
    assert [row["step"] for row in read_metrics(run.metrics_file)] == list(range(1, 121))
    assert [row["completion"] for row in read_metrics(run.completions_file)] == ["kept", "again"]
    assert list(points(run.tensorboard)["train/loss"]) == list(range(1, 121))
    resumes = [row for row in read_lines(run.events_file) if row["event"] == "resume"]
    assert [(row["step"], row["attempt"]) for row in resumes] == [(51, 2)]
    summary = summarise(run)
    assert (summary.state, summary.step, summary.attempt, summary.exit_code) == ("finished", 120, 2, 0)


def test_events_carry_the_last_step_unless_they_name_one(tmp_path):
    run = RunDir.create(tmp_path, "a")
    tracker = Tracker(run)
    steps(tracker, 1, 3)
    tracker.event("checkpoint", {"seconds": 0.5})
    tracker.event("spike", {"step": 2, "loss": float("inf")})
    rows = list(read_lines(run.events_file))
    assert [(row["event"], row["step"]) for row in rows] == [("checkpoint", 3), ("spike", 2)]
    assert rows[1]["loss"] == "Infinity"
    tracker.finish("finished", 0)


def test_status_follows_and_says_how_long_it_takes(tmp_path):
    run = RunDir.create(tmp_path, "a")
    tracker = Tracker(run)
    tracker.status("loading", phase="loading model")
    assert (run.read_status().state, run.read_status().phase) == ("loading", "loading model")
    tracker.status("running", total=10, phase="")
    for step in range(1, 5):
        tracker.metrics(step, step, {"train/loss": 1.0})
        time.sleep(0.01)
    tracker.status("saving")
    status = run.read_status()
    assert (status.state, status.step, status.total) == ("saving", 4, 10)
    assert status.eta is not None
    assert status.eta > 0.05
    tracker.finish("preempted", 75)
    assert (run.read_status().state, run.read_status().exit_code) == ("preempted", 75)


def test_leaving_by_an_error_is_a_failed_run(tmp_path):
    run = RunDir.create(tmp_path, "a")

    def crash():
        with Tracker(run) as tracker:
            tracker.metrics(1, 1, {"train/loss": 1.0})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crash()
    assert (run.read_status().state, run.read_status().exit_code) == ("failed", 1)


def test_a_full_disk_under_the_metrics_stops_the_run(tmp_path):
    tracker = Tracker(RunDir.create(tmp_path, "a"))
    faults.arm("log.before_write@file=metrics.jsonl@step=2:errno:ENOSPC")
    tracker.metrics(1, 1, {"train/loss": 1.0})
    with pytest.raises(MachineError, match="disk is full"):
        tracker.metrics(2, 2, {"train/loss": 1.0})
    faults.arm("")
    tracker.finish("failed", 5)


def test_a_lost_tensorboard_folder_is_a_warning(tmp_path):
    run = RunDir.create(tmp_path, "a")
    run.tensorboard.write_text("a file in the way")
    tracker = Tracker(run)
    steps(tracker, 1, 3)
    tracker.finish("finished", 0)
    assert len(read_metrics(run.metrics_file)) == 3
    assert [row.get("code") for row in read_lines(run.events_file)] == ["W190"]


def test_log_lines_stay_lines(tmp_path):
    run = RunDir.create(tmp_path, "a")
    tracker = Tracker(run)
    tracker.text("first\nsecond")
    tracker.text("third")
    tracker.finish("finished", 0)
    lines = run.log_file.read_text().splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["first", "second", "third"]
    assert lines[1].startswith("    ")


def test_other_ranks_write_nothing(tmp_path):
    tracker: Tracking = NullTracker()
    steps(tracker, 1, 3)
    tracker.event("x", {})
    tracker.completion(1, "p", "c")
    tracker.status("running")
    tracker.flush()
    tracker.heal(1)
    assert tracker.offset() == 0
    assert tracker.finish("finished", 0) == []


def test_a_row_costs_far_less_than_a_step(tmp_path):
    tracker = Tracker(RunDir.create(tmp_path, "a"))
    begin = time.process_time()
    values = {f"train/value_{number}": 0.5 for number in range(7)}
    for step in range(1, 1001):
        tracker.metrics(step, step, values)
    assert (time.process_time() - begin) / 1000 < 1e-3
    tracker.finish("finished", 0)
