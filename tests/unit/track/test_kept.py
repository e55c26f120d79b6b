"""Programs beside ours: they end with us however we end, and tell how they ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunesmith.track import kept as kept_module
from tunesmith.track.kept import Kept

SLEEPS = "import time; time.sleep(600)"
FAMILY = f"""
import os, subprocess, sys, time
below = subprocess.Popen([sys.executable, "-c", {SLEEPS!r}])
open("pids.part", "w").write(f"{{os.getpid()}} {{below.pid}}")
os.rename("pids.part", "pids")
time.sleep(600)
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FAMILY
OURS = """
import os, sys
from tunesmith.track.kept import Kept
kept = Kept([sys.executable, "-c", sys.argv[1]], open("output", "wb"), os.environ)
kept.process.wait()
"""
SANDBOX = """
import shutil, sys
from tunesmith.rollout import sandbox
sandbox.APART = {apart}
if not sandbox.APART:  # as root this Python may stand where only root reads
    sys.executable = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
sandbox.run_program("import time; time.sleep(600)", sandbox.Limits(seconds=600))
"""
TEMPLATE = """
import time
from tunesmith.data.template import Template
made = Template("x", {}, "here")
made.render([], [], [(0, True)])
time.sleep(600)
"""


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def below(pid: int) -> set[int]:
    """All processes that descend from one."""
    found: set[int] = set()
    for child in Path(f"/proc/{pid}/task").glob("*/children"):
        for each in child.read_text().split():
            found |= {int(each), *below(int(each))}
    return found


def soon(condition, seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


def pids(folder: Path) -> list[int]:
    assert soon((folder / "pids").exists, 30)
    return [int(pid) for pid in (folder / "pids").read_text().split()]


def start(folder: Path, text: str, *words: str) -> subprocess.Popen[bytes]:
    source = Path(kept_module.__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", text, *words], cwd=folder, env={**os.environ, "PYTHONPATH": str(source)}
    )


@pytest.mark.parametrize("program", [FAMILY, STUBBORN], ids=["mild", "stubborn"])
def test_a_program_and_its_children_end_with_us_when_we_are_killed(tmp_path: Path, program: str) -> None:
    ours = start(tmp_path, OURS, program)
    family = pids(tmp_path)
    assert len(below(ours.pid)) == 3  # the keeper, the program, its child
    assert all(map(lives, family))
    ours.send_signal(signal.SIGKILL)
    ours.wait()
    assert soon(lambda: not any(map(lives, family)))


def open_kept(folder: Path, *command: str) -> Kept:
    with (folder / "output").open("wb") as output:
        return Kept(command, output, {**os.environ, "GIVEN": "here"})


@pytest.mark.parametrize("code", [0, 3, -signal.SIGTERM, -signal.SIGKILL, -signal.SIGSEGV])
def test_how_it_ended_is_told_and_what_it_said(tmp_path: Path, code: int) -> None:
    ends = f"os.kill(os.getpid(), {-code})" if code < 0 else f"os._exit({code})"
    kept = open_kept(tmp_path, sys.executable, "-c", f"import os; print(os.environ['GIVEN'], flush=True); {ends}")
    assert kept.process.wait(20) == code
    assert not kept.runs
    assert (tmp_path / "output").read_text() == "here\n"
    kept.end()
    kept.end()


def test_it_is_ended_at_once_or_after_some_patience(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for program, patience, code in ((FAMILY, 0.0, -9), (FAMILY, 20.0, -15), (STUBBORN, 0.5, -9)):
        kept = open_kept(tmp_path, sys.executable, "-c", program)
        family = pids(tmp_path)
        assert kept.runs
        kept.end(patience)
        assert kept.code == code
        assert soon(lambda family=family: not any(map(lives, family)))
        (tmp_path / "pids").unlink()


def test_what_cannot_be_run_says_so(tmp_path: Path) -> None:
    kept = open_kept(tmp_path, str(tmp_path / "none"))
    assert kept.process.wait(20) == 127
    assert "none cannot be run" in (tmp_path / "output").read_text()
    kept.end()


@pytest.mark.parametrize(
    ("text", "count"),
    [(SANDBOX.format(apart=False), 2), (SANDBOX.format(apart=True), 2), (TEMPLATE, 1)],
    ids=["sandbox", "sandbox apart", "template"],
)
def test_programs_of_models_and_templates_end_with_us_when_we_are_killed(tmp_path: Path, text: str, count: int) -> None:
    ours = start(tmp_path, text)
    assert soon(lambda: len(below(ours.pid)) >= count, 30)
    time.sleep(0.5)  # whatever cannot run has ended
    family = below(ours.pid)
    if len(family) < count:
        pytest.skip("no Python that every user may read")
    ours.send_signal(signal.SIGKILL)
    ours.wait()
    assert soon(lambda: not any(map(lives, family)))
