"""Programs that a model wrote, run in a sandbox: a process of its own with limits, without network or files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from tunesmith.errors import MachineError

TOLD = 2000  # characters of what a program printed last
GRACE = 5.0  # seconds beyond its own limit after which the sandbox itself is ended

End = Literal["passed", "failed", "ended early", "too long", "killed"]
APART = True  # namespaces of their own for programs, where the system allows them


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one program. `memory`: MiB of addresses of each process; `file`: MiB of a file, and a quarter of all files."""

    seconds: int = 5
    memory: int = 512
    file: int = 16
    processes: int = 16
    open_files: int = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended and what it printed last. `apart`: it had no network and could write no file of yours.

    It passed only when it ran to its last line; "ended early" is one that left before as if all were well.
    """

    end: End
    output: str
    apart: bool

    @property
    def passed(self) -> bool:
        return self.end == "passed"


def run_program(text: str, limits: Limits | None = None) -> Outcome:
    """Run Python in the sandbox; nothing of it is left when this returns."""
    limits = limits or Limits()
    runner = Path(__file__).with_name("sandbox_runner.py")
    work = tempfile.mkdtemp(prefix="tunesmith-program-")
    told, report = os.pipe()
    try:
        with tempfile.TemporaryFile() as output:
            places = {"work": work, "home": home(), "parent": os.getpid()}
            asked = json.dumps({**places, "apart": APART, "limits": asdict(limits)})
            process = subprocess.Popen(
                [sys.executable, "-I", "-X", "utf8", str(runner), asked, str(report)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=environment(work),
                pass_fds=(report,),
                start_new_session=True,
            )
            os.close(report)
            report = -1
            try:
                with suppress(subprocess.TimeoutExpired):
                    process.communicate(text.encode("utf-8", "surrogatepass"), timeout=limits.seconds + GRACE)
            finally:
                end_group(process)
            found = read_all(told)
            output.seek(max(0, output.seek(0, os.SEEK_END) - TOLD))
            shown = output.read().decode("utf-8", "replace")
    finally:
        os.close(told)
        if report >= 0:
            os.close(report)
        shutil.rmtree(work, ignore_errors=True)
    return outcome_of(found, shown)


def environment(work: str) -> dict[str, str]:
    """Nothing of ours but where commands are."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": work, "TMPDIR": work, "LANG": "C.UTF-8", **one}


def home() -> str:
    try:
        return str(Path.home().resolve())
    except (OSError, RuntimeError):  # this user has none
        return "/"


def end_group(process: subprocess.Popen[bytes]) -> None:
    """The sandbox with all that it started; the first process of its namespace takes the rest with it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_all(told: int) -> bytes:
    with open(told, "rb", closefd=False) as file:
        return file.read()


def outcome_of(found: bytes, shown: str) -> Outcome:
    if not found:  # the sandbox was ended with its program
        return Outcome("too long", shown, False)
    told = json.loads(found)
    code, end = told["code"], "failed"
    if told["whole"]:
        end = "passed"
    elif code is None or code == -signal.SIGXCPU:
        end = "too long"
    elif code <= 0:
        end = "killed" if code else "ended early"
    return Outcome(end, shown, told["apart"])


@cache
def check_sandbox() -> bool:
    """Whether programs are kept from network and files here.

    MachineError E472 when they cannot be run at all, or when one that is right does not pass.
    """
    if sys.platform == "win32":
        raise no_sandbox("this system has no limits for processes as the sandbox needs them")
    found = run_program("import math\nassert math.isqrt(49) == 7\n")
    if not found.passed:
        raise no_sandbox(
            f"a program that is right ended there as: {found.end}", *found.output.strip().splitlines()[-3:]
        )
    return found.apart


def no_sandbox(message: str, *evidence: str) -> MachineError:
    fixes = [
        "run this on Linux",
        "a Python that every user of the machine may read",
        "leave out tasks that run programs",
    ]
    return MachineError("E472", f"programs cannot be run in the sandbox: {message}", evidence=evidence, fixes=fixes)
