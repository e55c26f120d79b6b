"""The list of runs, runs found by name, outcomes and plans compared."""

import json
import time

import pytest

from tunesmith.errors import UsageError
from tunesmith.track import RunDir, Tracker
from tunesmith.track.index import find_run, scan
from tunesmith.track.outcome import compare_with_plan, outcome


def make_run(folder, name: str, created: float = 0.0) -> RunDir:
    run = RunDir.create(folder, name)
    run.write_run({"created": created or time.time()})
    return run


def train(run: RunDir, steps: int, **finish) -> None:
    with Tracker(run, attempt=run.next_attempt(), tensorboard=False) as tracker:
        tracker.status("running", total=steps)
        for step in range(1, steps + 1):
            values = {"train/loss": 2.0 / step, "perf/step_s": 0.5, "mem/peak_gb": 1.0 + step / 100}
            tracker.metrics(step, step * 64, {**values, "train/tokens_per_step": 64.0})
        if finish:
            tracker.event("finish", finish)


def test_runs_are_listed_newest_first_and_damaged_ones_with_their_reason(tmp_path):
    for number, name in enumerate(["old", "new", "planned", "no-run", "bad-status", "torn"]):
        make_run(tmp_path, name, created=1000.0 + number)
    train(RunDir(tmp_path / "old"), 3)
    train(RunDir(tmp_path / "new"), 2)
    (tmp_path / "no-run" / "run.json").unlink()
    (tmp_path / "no-run" / "status.json").write_text("{}")
    (tmp_path / "bad-status" / "status.json").write_text('{"state": 1}')
    (tmp_path / "torn" / "run.json").write_text('{"id": "to')
    (tmp_path / "not a run").mkdir()
    (tmp_path / "file.txt").write_text("")
    found = {each.id: each for each in scan(tmp_path)}
    assert [each.id for each in scan(tmp_path) if each.created < 2000] == ["bad-status", "planned", "new", "old"]
    assert {name: each.state for name, each in found.items()} == {
        "old": "finished",
        "new": "finished",
        "planned": "planned",
        "no-run": "damaged",
        "bad-status": "damaged",
        "torn": "damaged",
    }
    assert found["no-run"].reason == "run.json is missing"
    assert found["torn"].reason == "run.json is not JSON"
    assert "status.json" in found["bad-status"].reason
    assert found["old"].loss == pytest.approx(2 / 3)
    assert scan(tmp_path / "nowhere") == []
    assert scan(tmp_path / "file.txt") == []


@pytest.mark.parametrize("created", ["soon", None, [], {"x": 1}])
def test_a_strange_date_does_not_break_the_list(tmp_path, created):
    run = RunDir.create(tmp_path, "a")
    run.write_run({"created": created})
    assert [each.state for each in scan(tmp_path)] == ["damaged"]


def test_a_thousand_runs_are_listed_quickly(tmp_path):
    status = json.dumps({"state": "finished", "host": "h", "pid": 1, "pid_start": "", "heartbeat": 0.0})
    for number in range(1000):
        folder = tmp_path / f"run-{number}"
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"id": folder.name, "created": number}))
        (folder / "status.json").write_text(status)
    begin = time.process_time()
    assert len(scan(tmp_path)) == 1000
    assert time.process_time() - begin < 2.0


def test_a_run_is_found_by_path_name_beginning_and_last(tmp_path):
    for number, name in enumerate(["2025-01-01-sft", "2025-01-02-sft", "2025-01-02-sft-2"]):
        make_run(tmp_path, name, created=1000.0 - number)
    assert find_run(tmp_path / "2025-01-02-sft").id == "2025-01-02-sft"
    assert find_run("2025-01-02-sft", tmp_path).id == "2025-01-02-sft"
    assert find_run("2025-01-01", tmp_path).id == "2025-01-01-sft"
    assert find_run("last", tmp_path).id == "2025-01-01-sft"
    with pytest.raises(UsageError, match="2 runs begin with 2025-01-02") as several:
        find_run("2025-01-02", tmp_path)
    assert several.value.diagnostic.evidence == ("2025-01-02-sft", "2025-01-02-sft-2")
    with pytest.raises(UsageError, match="there is no run") as none:
        find_run("2025-01-01-sfd", tmp_path)
    assert none.value.diagnostic.code == "E191"
    assert none.value.diagnostic.fixes[0].label == "did you mean 2025-01-01-sft?"
    with pytest.raises(UsageError, match="there is no run"):
        find_run("last", tmp_path / "empty")


def test_the_outcome_of_a_killed_run_comes_from_its_metrics(tmp_path):
    run = make_run(tmp_path, "a")
    train(run, 4)
    found = outcome(run)
    assert (found.steps, found.tokens, found.seconds, found.tokens_per_step) == (4, 256, 2.0, 64.0)
    assert found.tokens_per_second == 128.0
    assert found.peak_memory_bytes == pytest.approx(1.04e9)
    assert (found.first_loss, found.last_loss, found.scored_tokens) == (2.0, 0.5, None)


def test_what_the_finish_event_says_wins(tmp_path):
    run = make_run(tmp_path, "a")
    train(run, 4, seconds=3.5, scored_tokens=99, tokens=300.0, unknown="x")
    found = outcome(run)
    assert (found.seconds, found.scored_tokens, found.tokens, found.steps) == (3.5, 99.0, 300, 4)


def test_plan_and_actual_are_compared_as_far_as_both_are_known(tmp_path):
    run = make_run(tmp_path, "a")
    plan = {"steps": 8, "tokens_per_step": 64, "seconds": 4.0, "memory": {"peak": 2.08e9}, "problems": []}
    train(run, 4)
    lines = {line.name: line for line in compare_with_plan(plan, outcome(run))}
    assert lines["steps"].ratio == 0.5
    assert lines["tokens_per_second"].ratio == 1.0
    assert lines["peak_memory_bytes"].ratio == pytest.approx(0.5)
    assert compare_with_plan({}, outcome(run)) == []
    assert [line.name for line in compare_with_plan({"steps": 3, "memory": "?"}, outcome(run))] == ["steps"]


def test_an_empty_run_has_an_empty_outcome(tmp_path):
    found = outcome(make_run(tmp_path, "a"))
    assert found.steps == 0
    assert found.last_loss is None
