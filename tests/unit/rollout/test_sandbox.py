"""Programs that do what they should not: each ends in time, reaches nothing, and leaves nothing behind."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tunesmith.errors import MachineError
from tunesmith.rollout import sandbox
from tunesmith.rollout.sandbox import Limits, check_sandbox, run_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is made of what Linux offers")
QUICK = Limits(seconds=4)
ORPHAN = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
time.sleep(0.2)
"""


def running() -> set[str]:
    """Command lines of everything that a sandbox started."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if "sandbox_runner" in text:
            found.add(f"{path.parent.name} {text}")
    return found


@pytest.fixture(autouse=True)
def nothing_is_left():
    before, folders = running(), set(Path(tempfile.gettempdir()).glob("tunesmith-program-*"))
    yield
    deadline = time.monotonic() + 5
    while running() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running() - before == set()
    assert set(Path(tempfile.gettempdir()).glob("tunesmith-program-*")) == folders


@pytest.fixture
def apart() -> None:
    if not check_sandbox():
        pytest.skip("this system allows no namespaces")


@pytest.mark.parametrize(
    ("program", "end", "told"),
    [
        ("print('hi')\nopen('a.txt', 'w').write('x')\nassert open('a.txt').read() == 'x'", "passed", "hi"),
        ("assert 1 + 1 == 3", "failed", "AssertionError"),
        ("def (", "failed", "SyntaxError"),
        ("import sys\nsys.exit(0)", "ended early", ""),
        ("import sys\nsys.exit(7)", "ended early", ""),
        ("import os\nos._exit(0)", "ended early", ""),
        ("import os\nos._exit(9)", "failed", ""),
        ("import os\nos.closerange(0, 100)", "failed", ""),
        ("import os\nos.abort()", "killed", ""),
        ("x = 'a' * 10**10", "failed", "MemoryError"),
        ("x = []\nwhile True: x.append(bytearray(10**7))", "failed", "MemoryError"),
        ("open('big', 'wb').write(b'0' * 10**8)", "failed", "File too large"),
        ("import os\nwhile True: os.fork()", "failed", "BlockingIOError"),
    ],
)
def test_how_a_program_ends_is_told(program, end, told) -> None:
    found = run_program(program, QUICK)
    assert (found.end, found.passed) == (end, end == "passed")
    assert told in found.output


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time\ntime.sleep(100)",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    ],
)
def test_what_does_not_end_is_ended(program) -> None:
    begin = time.monotonic()
    assert run_program(program, Limits(seconds=1)).end == "too long"
    assert time.monotonic() - begin < 1 + sandbox.GRACE + 20


def test_output_is_cut_and_does_not_fill_the_disk() -> None:
    found = run_program("while True: print('x' * 10**6)", QUICK)
    assert found.end == "failed"
    assert len(found.output) <= sandbox.TOLD


def test_orphans_end_with_their_program() -> None:
    assert run_program(ORPHAN, QUICK).passed


@pytest.mark.usefixtures("apart")
def test_nothing_outside_can_be_written_and_nobody_reached(tmp_path) -> None:
    place = tmp_path / "seen.txt"
    place.write_text("kept")
    os.chmod(tmp_path, 0o777)
    os.chmod(place, 0o666)
    program = f"""
import os, socket
for what in (lambda: open({str(place)!r}, 'w'), lambda: open('/tmp/made', 'w'), lambda: os.unlink({str(place)!r})):
    try:
        what()
    except OSError:
        continue
    raise SystemExit
try:
    socket.create_connection(('192.0.2.1', 80), timeout=1)
    raise SystemExit
except OSError as error:
    assert 'unreachable' in str(error), error
for victim in (os.getppid(), -1):
    try:
        os.kill(victim, 9)
    except OSError:
        continue
assert os.listdir('/proc') == []
"""
    found = run_program(program, QUICK)
    assert (found.end, found.output, found.apart) == ("passed", "", True)
    assert place.read_text() == "kept"


@pytest.mark.usefixtures("apart")
def test_all_files_together_are_limited() -> None:
    found = run_program("for at in range(20): open(str(at), 'wb').write(b'0' * 10**7)", QUICK)
    assert (found.end, "No space left" in found.output) == ("failed", True)


def test_the_environment_holds_nothing_of_ours(monkeypatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    assert run_program("import os\nassert 'SECRET_TOKEN' not in os.environ", QUICK).passed


def test_without_namespaces_limits_and_the_end_of_orphans_remain(monkeypatch) -> None:
    monkeypatch.setattr(sandbox, "APART", False)
    if not run_program("pass", QUICK).passed:  # as root this Python may stand where only root reads
        other = shutil.which("python3", path="/usr/bin:/bin")
        if other is None:
            pytest.skip("no Python that every user may read")
        monkeypatch.setattr(sys, "executable", other)
    found = run_program("print('hi')", QUICK)
    if not found.passed:
        pytest.skip("no Python that every user may read")
    assert found.apart is False
    assert run_program(ORPHAN, QUICK).passed
    assert run_program("import time\ntime.sleep(100)", Limits(seconds=1)).end == "too long"
    assert run_program("x = 'a' * 10**10", QUICK).end == "failed"


def test_a_python_that_cannot_run_there_is_refused(monkeypatch, tmp_path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such thing\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(MachineError) as caught:
        check_sandbox.__wrapped__()
    assert caught.value.diagnostic.code == "E472"
    assert "no such thing" in caught.value.diagnostic.evidence


def test_a_program_ends_with_the_process_that_runs_it(tmp_path) -> None:
    script = "from tunesmith.rollout.sandbox import *\nrun_program('import time\\ntime.sleep(99)', Limits(seconds=90))"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 60
    while not any("sandbox_runner" in one for one in running()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
