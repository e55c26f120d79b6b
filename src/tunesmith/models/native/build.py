"""The compiled kernels: built once for each processor and source, kept under home() or where FOLDER_VARIABLE says."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from tunesmith.paths import home

FOLDER = Path(__file__).parent
SOURCES = (
    "kernels.cpp",
    "attention.cpp",
    "low_rank.cpp",
    "moments.cpp",
    "expand.cpp",
    "decode.cpp",
    "step.cpp",
    "product.cpp",
)
HEADERS = ("tiles.h", "rows.h", "decode.h")
SWITCH = "TUNESMITH_KERNELS"  # "off" keeps to torch
FOLDER_VARIABLE = "TUNESMITH_KERNELS_FOLDER"
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
COMPILERS = ("c++", "g++", "clang++")
SECONDS = 120


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels; None when they are switched off, or cannot be had here (`state` says why)."""
    if os.environ.get(SWITCH) == "off":
        return None
    try:
        path = compiled()
        # torch's OpenMP is loaded already, and serves the kernels as well: they are linked to none of their own
        return None if path is None else ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None


def state() -> str:
    """One line for people: whether the kernels are there, and if not, why."""
    if os.environ.get(SWITCH) == "off":
        return f"off: {SWITCH}=off is set"
    if library() is not None:
        return "compiled for this processor"
    return "torch alone: the kernels did not compile" if compiler() else "torch alone: there is no C++ compiler"


def compiler() -> str | None:
    wanted = os.environ.get("CXX")
    return next((path for name in (wanted, *COMPILERS) if name and (path := shutil.which(name))), None)


def compiled() -> Path | None:
    """The library's file; built when it is missing, in a place of its own and renamed when whole."""
    sources = b"".join((FOLDER / name).read_bytes() for name in (*SOURCES, *HEADERS))
    made_by = compiler()
    key = hashlib.sha256(sources + repr((FLAGS, made_by, processor())).encode()).hexdigest()[:16]
    path = Path(os.environ.get(FOLDER_VARIABLE) or home() / "kernels") / f"{key}.so"
    if path.exists() or made_by is None:
        return path if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        run = functools.partial(subprocess.run, check=True, capture_output=True, timeout=SECONDS, cwd=folder)
        run([made_by, *FLAGS, *widest(), "-c", *(str(FOLDER / name) for name in SOURCES)])
        whole = Path(folder) / "kernels.so"
        run([made_by, "-shared", *(str(Path(name).with_suffix(".o")) for name in SOURCES), "-o", str(whole)])
        os.replace(whole, path)
    return path


def widest() -> tuple[str, ...]:
    """GCC keeps to half of the widest registers unless told otherwise."""
    return ("-mprefer-vector-width=512",) if "avx512bw" in processor() else ()


@functools.cache
def processor() -> str:
    """What the compiled code depends on: the abilities of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
