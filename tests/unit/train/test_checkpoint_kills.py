"""Checkpoints under fire: a kill at every failpoint, real disk limits, and the order of the system calls."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def fast_folder(tmp_path) -> Iterator[Path]:
    """A folder in memory where there is one: the kernel keeps what a killed process wrote, on disk or not."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def _run(
    script: str, *words: object, timeout: float = 240, before: tuple[str, ...] = ()
) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*before, sys.executable, str(HERE / script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


def _kill_everywhere(folder: Path, kills: int, commit: str) -> None:
    done = _run("checkpoint_kills.py", folder, kills, commit)
    assert done.returncode == 0, done.stderr[-2000:]
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    failed = [case for case in cases if case["problems"]]
    points = {(case["point"], case["file"]) for case in cases}
    print(f"{len(cases)} kills at {len(points)} failpoints, {len(failed)} failed")
    assert failed == []
    assert len(points) >= 50


WAYS = pytest.mark.parametrize("commit", ["rename", "marker"])


@WAYS
def test_r01_r18_kill_at_every_failpoint(fast_folder, commit):
    _kill_everywhere(fast_folder, 2, commit)


@pytest.mark.nightly
@WAYS
def test_r01_r18_kill_at_every_failpoint_five_times(fast_folder, commit):
    _kill_everywhere(fast_folder, 5, commit)


def test_r09_disk_full(tmp_path):
    alone = ("unshare", "--user", "--map-root-user", "--mount")
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine does not let us mount a small disk of our own")
    done = _run("checkpoint_limits.py", tmp_path, "full_disk", before=alone)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr[-2000:]


def test_r10_file_size_limit(tmp_path):
    done = _run("checkpoint_limits.py", tmp_path, "file_size")
    assert done.returncode == 0, done.stderr[-2000:]


def _calls(log: str, folder: Path) -> list[tuple[str, str]]:
    """(system call, path inside `folder`) in order; a rename shows its source."""
    found = []
    for line in log.splitlines():
        match = re.match(r"(?:\d+ +)?(\w+)\((.*)\) += \d", line)
        if match is None:
            continue
        call, words = match.groups()
        path = re.search(re.escape(str(folder)) + r'/?([^">]*)', words)
        if path is not None:
            found.append((call.replace("renameat2", "rename").replace("renameat", "rename"), path[1]))
    return found


def test_r12_write_fsync_rename_fsync_folder_in_this_order(tmp_path):
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    log = tmp_path / "strace.log"
    folder = tmp_path / "checkpoints"
    traced = "trace=write,fsync,fdatasync,rename,renameat,renameat2"
    done = _run("checkpoint_once.py", folder, before=(strace, "-f", "-y", "-s", "0", "-o", str(log), "-e", traced))
    if done.returncode != 0 and "ptrace" in done.stderr.lower():
        pytest.skip(f"strace may not trace here: {done.stderr.strip()[:200]}")
    assert done.returncode == 0, done.stderr[-2000:]
    calls = _calls(log.read_text(), folder)
    staging = ".tmp-step-1-t"
    renamed = calls.index(("rename", staging))
    files = [path for call, path in calls[:renamed] if call == "write"]
    assert {f"{staging}/{name}" for name in ("model.safetensors", "state.json", "manifest.json")} <= set(files)
    for path in files:  # every file is synced after its last write ...
        writes = [index for index, each in enumerate(calls) if each == ("write", path)]
        assert calls.index(("fsync", path)) > writes[-1]
    manifest = calls.index(("write", f"{staging}/manifest.json"))
    others = [calls.index(("fsync", path)) for path in set(files) if not path.endswith("manifest.json")]
    assert max(others) < manifest  # ... the manifest comes last ...
    assert calls.index(("fsync", f"{staging}/manifest.json")) < calls.index(("fsync", staging)) < renamed
    assert ("fsync", "") in calls[renamed + 1 :]  # ... then the rename, then its folder
    parent = calls.index(("fsync", ""), renamed)
    latest = calls.index(("rename", ".tmp-latest-t"))
    assert parent < calls.index(("write", ".tmp-latest-t")) < calls.index(("fsync", ".tmp-latest-t")) < latest
    assert ("fsync", "") in calls[latest + 1 :]
