"""lm-evaluation-harness found, or the command that installs it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from tunesmith.errors import Fix, MachineError

NEEDED = (0, 4, 13)  # of lm-eval
INSTALL = "pip install 'tunesmith[harness]'"


def open_backend() -> ModuleType:
    """The module that wraps the harness; MachineError E465 when it is not installed, is too old or cannot be loaded."""
    try:
        found = version("lm-eval")
    except PackageNotFoundError as error:
        raise missing("the tasks of lm-evaluation-harness need lm-eval, which is not installed") from error
    if numbers(found) < NEEDED:
        wanted = ".".join(map(str, NEEDED))
        raise missing(f"lm-eval {found} is installed, and Tunesmith needs {wanted} or newer")
    try:
        from tunesmith.evaluate.lm_harness import backend
    except ImportError as error:
        raise missing("lm-eval is installed, and something that it needs is not", str(error)) from error
    return backend


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3] if part.isdigit())


def missing(message: str, *evidence: str) -> MachineError:
    fixes = [Fix("install it", command=INSTALL), "--suite basic needs no other package"]
    return MachineError("E465", message, evidence=evidence, fixes=fixes)
