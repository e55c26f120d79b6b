"""status.json: states, heartbeat, liveness."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest

from tunesmith.errors import BadInput
from tunesmith.track.process import this_process
from tunesmith.track.status import ACTIVE, STALE_SECONDS, STATES, Pace, Status, StatusWriter, observed, read_status


def status_now(**changes) -> Status:
    me = this_process()
    return replace(Status("running", me.host, me.pid, me.start, time.time()), **changes)


def test_a_live_process_with_a_fresh_heart_is_running():
    assert observed(status_now()) == ("running", "")


@pytest.mark.parametrize("state", sorted(ACTIVE))
def test_an_active_run_whose_process_is_another_one_is_lost(state):
    start = this_process().start.rpartition("-")[0] + "-1"
    assert observed(status_now(state=state, pid_start=start))[0] == "lost"


@pytest.mark.parametrize("shift", [-STALE_SECONDS - 5, STALE_SECONDS + 5, -86400, 86400])
def test_a_heartbeat_far_from_now_is_lost(shift):
    state, reason = observed(status_now(heartbeat=time.time() + shift))
    assert state == "lost"
    assert "no heartbeat" in reason


def test_on_another_host_the_heartbeat_alone_decides():
    state, reason = observed(status_now(host="elsewhere"))
    assert state == "running"
    assert "heartbeat alone" in reason
    assert observed(status_now(host="elsewhere", heartbeat=time.time() - 100))[0] == "lost"


@pytest.mark.parametrize("state", sorted(set(STATES) - ACTIVE))
def test_a_run_that_ended_needs_no_process(state):
    assert observed(status_now(state=state, pid=1, heartbeat=0.0)) == (state, "")


def test_the_writer_beats_while_nothing_happens_and_ends_with_the_final_state(tmp_path):
    path = tmp_path / "status.json"
    writer = StatusWriter(path, attempt=2, beat_seconds=0.02)
    first = read_status(path)
    time.sleep(0.2)
    assert read_status(path).heartbeat > first.heartbeat
    writer.set("running", total=50)
    for step in range(1, 4):
        writer.step(step)
    writer.close("finished", 0)
    last = read_status(path)
    assert (last.state, last.step, last.total, last.attempt, last.exit_code) == ("finished", 3, 50, 2, 0)
    assert last.last_step is not None
    time.sleep(0.1)
    assert read_status(path) == last
    assert [each.name for each in tmp_path.iterdir()] == ["status.json"]


def test_readers_never_see_half_a_status(tmp_path):
    path = tmp_path / "status.json"
    writer = StatusWriter(path, attempt=1, beat_seconds=0.001)
    end = time.monotonic() + 0.5
    count = 0
    while time.monotonic() < end:
        assert read_status(path).state == "loading"
        count += 1
    writer.close("stopped", 130)
    assert count > 50


@pytest.mark.parametrize(
    "change",
    [
        {"state": "dancing"},
        {"pid": "7"},
        {"heartbeat": None},
        {"total": "many"},
        {"host": 3},
        {"eta": []},
        {"step": None},
    ],
)
def test_a_wrong_value_is_damage(tmp_path, change):
    path = tmp_path / "status.json"
    path.write_text(json.dumps({**status_now().to_json(), **change}))
    with pytest.raises(BadInput, match="wrong value"):
        read_status(path)


def test_unknown_fields_are_left_out_and_missing_ones_are_damage(tmp_path):
    path = tmp_path / "status.json"
    value = status_now().to_json()
    path.write_text(json.dumps({**value, "later": 1}))
    assert read_status(path).to_json() == value
    del value["pid"]
    path.write_text(json.dumps(value))
    with pytest.raises(BadInput, match="lacks a field"):
        read_status(path)


def test_a_killed_and_a_frozen_run_are_told_apart_from_a_live_one(tmp_path):
    program = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from tunesmith.track.status import StatusWriter
        writer = StatusWriter(Path(sys.argv[1]), 1, 0.05)
        writer.set("running")
        print("up", flush=True)
        time.sleep(60)
    """)
    path = tmp_path / "status.json"
    child = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    assert observed(read_status(path)) == ("running", "")
    child.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    frozen = read_status(path)
    assert observed(frozen, now=frozen.heartbeat + STALE_SECONDS + 1)[0] == "lost"
    child.kill()
    child.wait()
    assert observed(read_status(path))[0] == "lost"


def test_pace_is_in_seconds_and_never_negative():
    pace = Pace()
    assert pace.remaining(10) is None
    pace.note(1)
    assert pace.remaining(10) is None
    time.sleep(0.02)
    pace.note(2)
    left = pace.remaining(10)
    assert left is not None
    assert 0.1 < left < 2
    assert pace.remaining(1) == 0
    assert pace.remaining(None) is None
