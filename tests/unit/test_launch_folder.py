"""P12: the folder of a launch is there while anybody needs it, and goes with the next launch else."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tunesmith.distributed.heart import Heart
from tunesmith.distributed.launched import LAUNCHER, launcher
from tunesmith.distributed.word import PREFIX, locked_folder, shared_folder, sweep

pytestmark = pytest.mark.row("P12")

LAUNCH = """
import subprocess, sys, time
from tunesmith.distributed.word import shared_folder
with shared_folder() as word:
    (word.path / "beats").write_text("x")
    rank = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    started = subprocess.Popen(rank, stdin=subprocess.PIPE, pass_fds=(word.descriptor,))
    print(word.path, started.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def folders(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.glob(f"{PREFIX}*"))


def test_p12_a_launch_leaves_nothing(tmp_path):
    with shared_folder() as word:
        assert folders(tmp_path) == [word.path]
        assert sweep() == [], "its own lock keeps it"
    assert folders(tmp_path) == []


def test_p12_the_folder_of_a_killed_launcher_stays_for_its_ranks_and_goes_after_them(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", LAUNCH], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    path, rank = process.stdout.readline().split()
    process.send_signal(signal.SIGSTOP)  # a rank of which the standard input stays open
    try:
        assert sweep() == []
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while Path(f"/proc/{rank}/fd").exists() and time.monotonic() < deadline and not sweep():
            time.sleep(0.02)
        sweep()
        assert not Path(path).exists()
    finally:
        process.kill()


def test_p12_a_rank_that_is_left_keeps_the_folder(tmp_path):
    word = locked_folder()
    rank = subprocess.Popen(["sleep", "60"], pass_fds=(word.descriptor,))
    os.close(word.descriptor)
    assert sweep() == []
    rank.kill()
    rank.wait()
    assert sweep() == [word.path]


def test_p12_only_folders_are_swept_and_no_links(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "precious")
    (tmp_path / f"{PREFIX}file").write_text("x")
    (tmp_path / "tunesmith-other").mkdir()
    assert sweep() == []
    assert len(list(tmp_path.iterdir())) == 4


def test_p12_a_rank_knows_its_launcher_even_when_it_is_gone(monkeypatch):
    monkeypatch.setenv(LAUNCHER, "17")
    assert launcher() == 17
    monkeypatch.delenv(LAUNCHER)
    assert launcher() == os.getppid()
    seen = []
    monkeypatch.setattr(os, "kill", lambda pid, number: seen.append((pid, number)))
    monkeypatch.setattr(os, "_exit", lambda code: seen.append(code))
    monkeypatch.setattr(time, "sleep", seen.append)
    Heart()._beat(2**22 + 1)  # nobody's number: at the first look the launcher is gone
    assert seen == [(os.getpid(), signal.SIGTERM), 30.0, 128 + signal.SIGTERM]
