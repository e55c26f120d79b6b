"""Run folders from somebody who means harm: pipes, devices, links and files without an end in a file's place."""

import json
import os
import signal
from contextlib import contextmanager

import pytest
from tests.command import call

from tunesmith.errors import BadInput, MachineError
from tunesmith.regular import NotRegular, open_regular, read_regular
from tunesmith.track import RunDir
from tunesmith.track.index import scan
from tunesmith.track.lock import LOCK, owner
from tunesmith.track.metrics import JsonLines
from tunesmith.track.reader import LONGEST, last_rows, read_from, read_lines
from tunesmith.train.manifest import Broken, read_manifest, verify_files

pytestmark = pytest.mark.row("W15")
PIPE, DEVICE = "it is a named pipe, not a file", "it is a device, not a file"


@contextmanager
def at_most(seconds):
    """A hang is a failure, not a test that never ends."""

    def late(signum, frame):
        raise AssertionError(f"still waiting after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def limit():
    with at_most(20):
        yield


def swap(path, kind):
    """Put a pipe, a device or a file that is too large in the place of `path`."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(10_000_000_000)  # which takes no space


def make(folder, name):
    run = RunDir.create(folder, name)
    run.write_run({"created": 1.0})
    return run


@pytest.mark.parametrize("name", ["status.json", "run.json", "metrics.jsonl"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_device_makes_its_run_damaged_and_no_other(tmp_path, monkeypatch, capsys, name, kind):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "runs", "good")
    swap(make(tmp_path / "runs", "bad").path / name, kind)
    found = {each.id: each for each in scan(tmp_path / "runs")}
    assert (found["good"].state, found["bad"].state) == ("planned", "damaged")
    assert found["bad"].reason == f"{name} cannot be read: {PIPE if kind == 'pipe' else DEVICE}"
    assert call("runs", "--json") == 0
    assert {each["state"] for each in json.loads(capsys.readouterr().out)["runs"]} == {"planned", "damaged"}
    call("runs", "show", "bad")
    assert "damaged" in (told := capsys.readouterr()).out or "E193" in told.err


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    swap(make(tmp_path, "bad").status_file, "large")
    (found,) = scan(tmp_path)
    assert (found.state, found.reason) == ("damaged", "status.json cannot be read: it is larger than 16,000,000 bytes")
    run = make(tmp_path, "config")
    swap(run.config_file, "pipe")
    with pytest.raises(BadInput, match=r"E193.*config\.yaml cannot be read"):
        run.read_config()


def test_a_line_without_an_end_costs_no_memory_and_the_rows_around_it_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + b"x" * (LONGEST + 5) + b'{"step": 2}\n{"step": 3}\n{"step": 4')
    assert list(read_lines(path)) == [{"step": 1}, {"step": 3}]
    rows, offset = read_from(path, 0)
    assert rows == [{"step": 1}, {"step": 3}]
    with path.open("ab") as file:
        file.write(b"}\n")
    assert read_from(path, offset) == ([{"step": 4}], path.stat().st_size)
    assert last_rows(path) == [{"step": 3}, {"step": 4}]


def test_rows_come_from_files_alone_and_are_written_to_files_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    os.mkfifo(path)
    for read in (lambda: list(read_lines(path)), lambda: read_from(path, 0), lambda: last_rows(path)):
        with pytest.raises(BadInput, match=f"E193.*{PIPE}"):
            read()
    with pytest.raises(MachineError, match=f"E194.*cannot write metrics.jsonl: {PIPE}"):
        JsonLines(path)


@pytest.mark.parametrize(("kind", "why"), [("pipe", PIPE), ("device", "it is a link")])
def test_a_lock_that_is_no_file_is_told(tmp_path, kind, why):
    run = make(tmp_path, "bad")
    swap(run.path / LOCK, kind)
    assert owner(run.path) is None
    with pytest.raises(MachineError, match=f"E194.*cannot write run.lock: {why}"), run.lock():
        pass


@pytest.mark.row("S16")
def test_what_a_lock_leads_to_is_not_overwritten(tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("dear")
    run = make(tmp_path, "bad")
    (run.path / LOCK).symlink_to(mine)
    with pytest.raises(MachineError, match="it is a link"), run.lock():
        pass
    assert mine.read_text() == "dear"


def test_checkpoints_are_read_from_files_alone(tmp_path):
    swap(tmp_path / "manifest.json", "pipe")
    with pytest.raises(Broken, match=PIPE):
        read_manifest(tmp_path)
    swap(tmp_path / "manifest.json", "large")
    with pytest.raises(Broken, match="it is larger than"):
        read_manifest(tmp_path)
    swap(tmp_path / "weights", "pipe")
    with pytest.raises(Broken, match=PIPE):
        verify_files(tmp_path, {"weights": {"size": 0, "sha256": ""}})


def test_what_is_opened_is_regular(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 5) == b"12345"
    with pytest.raises(NotRegular, match="larger than 4 bytes"):
        read_regular(tmp_path / "file", 4)
    with pytest.raises(NotRegular, match="it is a folder"):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
