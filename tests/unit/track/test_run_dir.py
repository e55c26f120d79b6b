"""Run directories: names, files written once, the lock."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunesmith.errors import BadInput, MachineError, UsageError
from tunesmith.track import lock as lock_file
from tunesmith.track.lock import LOCK, owner
from tunesmith.track.process import Process, start_of, this_process
from tunesmith.track.run_dir import RunDir, is_run
from tunesmith.track.status import StatusWriter


def test_date_and_slug_name_a_run_and_a_number_is_added_when_taken(tmp_path):
    ids = [RunDir.create(tmp_path / "runs", slug="SFT / starter!").id for _ in range(3)]
    stem = time.strftime("%Y-%m-%d") + "-sft-starter"
    assert ids == [stem, f"{stem}-2", f"{stem}-3"]


def test_a_given_name_is_used_as_it_is_and_never_twice(tmp_path):
    run = RunDir.create(tmp_path, "first")
    assert run.path == tmp_path / "first"
    run.write_config("train: {}\n")
    with pytest.raises(UsageError, match="already holds") as caught:
        RunDir.create(tmp_path, "first")
    assert caught.value.diagnostic.code == "E190"


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "-x", "a b", "x" * 101, "$(id)", "a\nb", "ö"])
def test_names_that_are_no_file_names_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="no name for a run"):
        RunDir.create(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_a_machine_error_in_words(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(MachineError) as caught:
        RunDir.create(tmp_path / "runs")
    assert caught.value.diagnostic.code == "E194"


def test_run_json_is_written_last_and_seals_config_and_plan(tmp_path):
    run = RunDir.create(tmp_path, "a")
    run.write_config("cut off by a ki")
    run.write_config("train:\n  steps: 3\n")
    run.write_plan({"steps": 3, "seconds": float("nan")})
    run.write_run({"argv": ["train"], "seed": 7})
    assert run.read_run()["id"] == "a"
    assert run.read_run()["seed"] == 7
    assert abs(run.read_run()["created"] - time.time()) < 60
    assert run.read_config() == "train:\n  steps: 3\n"
    assert run.read_plan() == {"steps": 3, "seconds": "NaN"}
    for write in (lambda: run.write_run({}), lambda: run.write_config(""), lambda: run.write_plan({})):
        with pytest.raises(UsageError):
            write()
    assert run.read_run()["seed"] == 7
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "plan.json", "run.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_run_json_is_named(tmp_path, content):
    run = RunDir.create(tmp_path, "a")
    run.run_file.write_bytes(content)
    with pytest.raises(BadInput, match=r"run\.json") as caught:
        run.read_run()
    assert caught.value.diagnostic.code == "E193"


def test_open_refuses_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UsageError, match="is not a run"):
        RunDir.open(tmp_path)
    (tmp_path / "status.json").write_text("broken")
    assert RunDir.open(tmp_path).path == tmp_path
    assert is_run(tmp_path)


def test_evidence_goes_to_its_own_folders(tmp_path):
    run = RunDir.create(tmp_path, "a")
    crash = run.crash("Traceback ...")
    batch = run.bad_batch(12, {"loss": float("inf"), "records": ["a.jsonl:3"]})
    assert crash.read_text() == "Traceback ..."
    assert json.loads(batch.read_text()) == {"loss": "Infinity", "records": ["a.jsonl:3"]}
    assert batch == run.path / "bad_batches" / "step-12.json"


HOLDER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from tunesmith.track.run_dir import RunDir
    with RunDir(Path(sys.argv[1])).lock():
        print("held", flush=True)
        time.sleep(60)
""")


def holder_process(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_r13_the_second_process_is_refused_by_name_and_a_stale_lock_is_recovered(tmp_path):
    run = RunDir.create(tmp_path, "a")
    holder = holder_process(run.path)
    try:
        with pytest.raises(UsageError) as caught, run.lock():
            pass
        assert caught.value.exit_code == 2
        assert caught.value.diagnostic.code == "E192"
        assert f"pid {holder.pid} on {socket.gethostname()}" in caught.value.diagnostic.message
    finally:
        holder.send_signal(signal.SIGKILL)  # not yet waited for: a zombie is no owner either
    deadline = time.monotonic() + 5
    while start_of(holder.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    with run.lock():
        assert owner(run.path) == this_process()
    holder.wait()
    assert owner(run.path) is None


def test_r13_a_reused_pid_is_not_the_owner(tmp_path):
    run = RunDir.create(tmp_path, "a")
    me = this_process()
    stem = me.start.rpartition("-")[0]
    (run.path / LOCK).write_text(json.dumps({"host": me.host, "pid": os.getppid(), "start": f"{stem}-1"}))
    with run.lock():
        assert owner(run.path) == me


def test_r13_an_owner_elsewhere_counts_as_alive_until_it_is_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_file, "WATCH_SECONDS", 0.3)
    run = RunDir.create(tmp_path, "a")
    lock = run.path / LOCK
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "start": "x-1-1"}))
    with pytest.raises(UsageError, match="pid 1 on elsewhere"), run.lock():
        pass
    os.utime(lock, (time.time() - 100, time.time() - 100))
    with run.lock():
        assert owner(run.path) == this_process()


@pytest.mark.row("R13")
@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_p11_a_clock_that_jumps_makes_no_living_owner_dead(tmp_path, monkeypatch, jump):
    """The owner cannot be seen from here, and its heartbeat is a day off by our clock; yet it moves."""
    run = RunDir.create(tmp_path, "a")
    (run.path / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 1, "start": "x-1-1"}))
    writer = StatusWriter(run.status_file, 1, beat_seconds=0.1)
    now = time.time
    clocks = SimpleNamespace(time=lambda: now() + jump, monotonic=time.monotonic, sleep=time.sleep)
    monkeypatch.setattr(lock_file, "time", clocks)
    try:
        with pytest.raises(UsageError, match="pid 1 on elsewhere"), run.lock():
            pass
    finally:
        writer.close("finished", 0)


def test_the_lock_is_given_back_after_an_error_and_is_not_reentrant(tmp_path):
    run = RunDir.create(tmp_path, "a")

    def fail_inside():
        with run.lock():
            with pytest.raises(UsageError), run.lock():
                pass
            assert owner(run.path) == this_process()
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert owner(run.path) is None
    with run.lock():
        pass


@pytest.mark.parametrize("content", ["", "garbage", "{}", '{"host": 1}', '{"host": "a", "pid": "x", "start": ""}'])
def test_a_broken_lock_file_is_no_owner(tmp_path, content):
    run = RunDir.create(tmp_path, "a")
    (run.path / LOCK).write_text(content)
    with run.lock():
        assert owner(run.path) == this_process()


def _try_lock(path: Path, barrier, results) -> None:
    barrier.wait()
    try:
        with RunDir(path).lock():
            results.put("won")
            time.sleep(0.5)
    except UsageError:
        results.put("refused")


def test_r13_of_many_processes_at_once_one_wins(tmp_path):
    run = RunDir.create(tmp_path, "a")
    (run.path / LOCK).write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 - 1, "start": "stale"}))
    os.utime(run.path / LOCK, (0, 0))
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(6), context.Queue()
    processes = [context.Process(target=_try_lock, args=(run.path, barrier, results)) for _ in range(6)]
    for process in processes:
        process.start()
    found = [results.get(timeout=20) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(found) == ["refused"] * 5 + ["won"]


def test_a_process_is_alive_dead_or_out_of_sight():
    me = this_process()
    assert me.alive() is True
    assert Process(me.host, me.pid, me.start.rpartition("-")[0] + "-1").alive() is False
    assert Process("elsewhere", me.pid, me.start).alive() is None
    assert Process(me.host, me.pid, "other-boot-1").alive() is None


def test_terminate_reaches_only_the_very_process():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    start = start_of(child.pid)
    stranger = Process(socket.gethostname(), child.pid, start.rpartition("-")[0] + "-1")
    assert not stranger.terminate()
    assert child.poll() is None
    assert Process(socket.gethostname(), child.pid, start).terminate()
    assert child.wait(10) == -signal.SIGTERM
    assert not Process(socket.gethostname(), child.pid, start).terminate()


def test_a_folder_with_nothing_but_a_lock_is_still_free(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.lock").write_bytes(b"")
    assert RunDir.create(tmp_path, "a").path == tmp_path / "a"
