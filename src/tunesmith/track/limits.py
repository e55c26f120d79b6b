"""The limits of this process (memory, files, threads), and errors that come of them in words."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import Fix, MachineError

CGROUP = Path("/sys/fs/cgroup")
UNMAPPED = ("failed to map segment", "cannot allocate memory", "can't allocate memory", "bad_alloc")  # lower case
NO_THREAD = ("can't start new thread", "resource temporarily unavailable", "thread creation failed")
NO_FILE = (errno.EMFILE, errno.ENFILE)
FILES_WANTED = 256
NEARLY = 0.95
HALVED = 512  # tokens of a microbatch that is small on any machine


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit of memory in bytes, what counts for it now, and how much of that is not resident."""

    name: str
    limit: int
    used: int
    idle: int = 0

    @property
    def room(self) -> int:
        """Resident bytes that the whole process may have."""
        return max(0, self.limit - self.idle)

    @property
    def is_met(self) -> bool:
        return self.used > NEARLY * self.limit

    def __str__(self) -> str:
        return f"limit: {self.limit / 1e9:.2f} GB ({self.name}), {self.used / 1e9:.2f} GB in use"


def own_bounds() -> Iterator[Bound]:
    """What the kernel allows this process by its resource limits; none where there is no /proc to tell its use."""
    sizes = status_sizes()
    for name, number, field, resident in (
        ("RLIMIT_AS, ulimit -v", resource.RLIMIT_AS, "VmSize", "VmRSS"),
        ("RLIMIT_DATA, ulimit -d", resource.RLIMIT_DATA, "VmData", "RssAnon"),
    ):
        limit, _ = resource.getrlimit(number)
        if limit != resource.RLIM_INFINITY:
            used = sizes.get(field, 0)
            yield Bound(name, limit, used, max(0, used - sizes.get(resident, 0)))


def group_bounds() -> Iterator[Bound]:
    """What every control group above this process allows, in both versions; cached file pages count as free."""
    for folder in cgroup_folders():
        for limit_name, used_name, cache_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = read_text(folder / limit_name).strip(), read_text(folder / used_name).strip()
            if limit.isdigit() and used.isdigit():
                rows = dict(line.split() for line in read_text(folder / "memory.stat").splitlines())
                yield Bound(f"control group, {limit_name}", int(limit), int(used) - int(rows.get(cache_name, 0)))
                break


def cgroup_folders() -> list[Path]:
    """The control groups above this process, in both versions of the file system."""
    folders = [CGROUP, CGROUP / "memory"]
    for line in read_text(Path("/proc/self/cgroup")).splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3 or parts[1] not in ("", "memory"):
            continue
        base = CGROUP / parts[1] if parts[1] else CGROUP
        inner = Path(parts[2].lstrip("/"))
        folders += [base / inner, *(base / parent for parent in inner.parents)]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def status_sizes() -> dict[str, int]:
    """Bytes by their names in /proc/self/status."""
    rows = [line.split() for line in read_text(Path("/proc/self/status")).splitlines()]
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3 and row[2] == "kB"}


def memory_told() -> list[str]:
    """How much this process has held at most, and every limit that it has."""
    sizes = status_sizes()
    held = sizes.get("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    bounds = [*own_bounds(), *group_bounds()]
    mapped = f", {sizes['VmPeak'] / 1e9:.2f} GB of addresses" if bounds and "VmPeak" in sizes else ""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    whole = f"limit: {total / 1e9:.2f} GB, the machine's memory"
    lowest = [str(bound) for bound in sorted(bounds, key=lambda bound: bound.limit) if bound.limit < total]
    return [f"the process has held {held / 1e9:.2f} GB at most{mapped}", *(lowest or [whole])]


def is_unmapped(error: BaseException) -> bool:
    """Whether memory ran out, also while a library was loaded."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, ImportError | RuntimeError | OSError)
        and ((isinstance(error, OSError) and error.errno == errno.ENOMEM) or any(word in words for word in UNMAPPED))
    )


def limit_error(error: BaseException) -> MachineError | None:
    """The error in words when a limit of this process or machine was hit; None of any other."""
    chain = [error, *causes(error)]
    if any(isinstance(each, OSError) and each.errno in NO_FILE for each in chain):
        return no_files(error)
    if any(is_unmapped(each) for each in chain):
        return no_memory(error)
    if any(is_threadless(each) for each in chain):
        return no_threads(error)
    lost_for_words = isinstance(error, RuntimeError | ImportError | SystemError)  # as libraries are without memory
    return no_memory(error) if lost_for_words and any(bound.is_met for bound in own_bounds()) else None


def causes(error: BaseException) -> Iterator[BaseException]:
    seen = error.__cause__ or error.__context__
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def is_threadless(error: BaseException) -> bool:
    words = str(error).lower()
    if isinstance(error, OSError):
        return error.errno == errno.EAGAIN
    return isinstance(error, RuntimeError) and any(word in words for word in NO_THREAD)


def reason_of(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def no_memory(error: BaseException, tokens: int = 2 * HALVED) -> MachineError:
    """Memory that ran out outside of a step whose microbatches could be made smaller."""
    half = max(8, tokens // 2)
    told = MachineError(
        "E493",
        "memory ran out, and not in a step whose microbatches could be made smaller",
        evidence=(*memory_told(), reason_of(error)),
        fixes=(
            Fix(f"train.microbatch_tokens={half}", {"train.microbatch_tokens": half}, effect="smaller forward passes"),
            Fix("model.quantization=nf4", {"model.quantization": "nf4"}, effect="a frozen base of a quarter the size"),
            Fix("data.max_length=512", {"data.max_length": 512}, effect="longer examples are dropped"),
        ),
    )
    told.__cause__ = error
    return told


def no_files(error: BaseException, doing: str = "") -> MachineError:
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = "" if most == resource.RLIM_INFINITY or most >= FILES_WANTED else ", which needs an administrator"
    told = MachineError(
        "E533",
        f"this process may open no further file: its limit is {limit:,}",
        evidence=(*([doing] if doing else []), reason_of(error)),
        fixes=(
            Fix("raise the limit, then resume", command=f"ulimit -n {FILES_WANTED}", effect=f"RLIMIT_NOFILE{raised}"),
        ),
    )
    told.__cause__ = error
    return told


def no_threads(error: BaseException) -> MachineError:
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    own = "no limit" if limit == resource.RLIM_INFINITY else f"{limit:,}"
    bounds = [str(bound) for bound in own_bounds()]
    told = MachineError(
        "E534",
        "the system gave this process no further thread",
        evidence=(reason_of(error), f"processes and threads of this user: {own} (RLIMIT_NPROC)", *bounds),
        fixes=(
            Fix("train.threads=1", {"train.threads": 1}, effect="fewer threads"),
            Fix("raise the limit, then resume", command="ulimit -u 4096"),
        ),
    )
    told.__cause__ = error
    return told


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
