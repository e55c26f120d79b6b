"""The process that runs one program in a sandbox made by the kernel, free of Tunesmith imports."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import runpy
import signal
import sys
import time
import traceback
from typing import Any, NoReturn

NEW_MOUNTS, NEW_NAME, NEW_IPC = 0x00020000, 0x04000000, 0x08000000
NEW_USERS, NEW_PROCESSES, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
APART = NEW_MOUNTS | NEW_NAME | NEW_IPC | NEW_PROCESSES | NEW_NETWORK
NO_SUID, NO_DEVICES, BIND, PRIVATE, RECURSIVE, READ_ONLY = 2, 4, 1 << 12, 1 << 18, 1 << 14, 1
AT_RECURSIVE, HERE, MOUNT_SETATTR = 0x8000, -100, 442
DIE_WITH_PARENT, NO_NEW_RIGHTS, ADOPT_ORPHANS = 1, 38, 36  # of prctl
CAPABILITIES = 0x20080522
NOBODY = 1_900_000_000  # user ids from here on belong to nobody
TICK = 0.005


class Kernel:
    """Calls that Python has no functions for; each raises OSError."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(None, use_errno=True)

    def checked(self, result: int) -> None:
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def unshare(self, flags: int) -> None:
        self.checked(self.library.unshare(flags))

    def control(self, option: int, value: int) -> None:
        self.checked(self.library.prctl(option, value, 0, 0, 0))

    def mount(self, kind: str, place: str, flags: int, data: str = "") -> None:
        name = kind.encode() or None
        self.checked(self.library.mount(name, place.encode(), name, ctypes.c_ulong(flags), data.encode() or None))

    def bind(self, source: str, place: str) -> None:
        self.checked(self.library.mount(source.encode(), place.encode(), None, ctypes.c_ulong(BIND | RECURSIVE), None))

    def make_read_only(self, place: str) -> None:
        """The whole tree of mounts; what is mounted later is not."""
        wanted = (ctypes.c_uint64 * 4)(READ_ONLY, 0, 0, 0)
        size = ctypes.c_size_t(ctypes.sizeof(wanted))
        self.checked(
            self.library.syscall(MOUNT_SETATTR, HERE, place.encode(), AT_RECURSIVE, ctypes.byref(wanted), size)
        )

    def drop_capabilities(self) -> None:
        head, sets = (ctypes.c_uint32 * 2)(CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
        self.checked(self.library.capset(ctypes.byref(head), ctypes.byref(sets)))


def set_apart(kernel: Kernel) -> bool:
    """Namespaces of its own for processes, network, mounts and names; False where the system allows none."""
    for flags in (APART, APART | NEW_USERS):
        user, group = os.getuid(), os.getgid()
        try:
            kernel.unshare(flags)
        except OSError:
            continue
        if flags & NEW_USERS:
            for name, text in (
                ("setgroups", "deny"),
                ("gid_map", f"{group} {group} 1"),
                ("uid_map", f"{user} {user} 1"),
            ):
                with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                    file.write(text)
        return True
    return False


def close_files(kernel: Kernel, asked: dict[str, Any], user: int) -> None:
    """Everything becomes read-only but the working folder, which is new, empty and in memory.

    /proc is empty, and so is what the program's user may not enter and the home of ours, but for Python itself.
    """
    kernel.mount("", "/", PRIVATE | RECURSIVE)
    needed = sorted({sys.base_prefix, sys.prefix, *filter(os.path.isdir, sys.path)}, key=len)
    hidden = {one for path in (*needed, asked["work"]) if (one := closed_above(path))} | {asked["home"]}
    for folder in sorted(hidden, key=len):
        if folder != "/" and os.path.isdir(folder):
            hide(kernel, folder, [path for path in needed if is_below(path, folder)])
    os.makedirs(asked["work"], exist_ok=True)
    kernel.make_read_only("/")
    size = asked["limits"]["file"] * 4
    kernel.mount("tmpfs", asked["work"], NO_SUID | NO_DEVICES, f"size={size}m,mode=700,uid={user},gid={user}")
    kernel.mount("tmpfs", "/proc", NO_SUID | NO_DEVICES | READ_ONLY, "size=4k")


def closed_above(path: str) -> str | None:
    """The highest folder above the path that only its owner may enter."""
    parts = os.path.realpath(path).split("/")[1:-1]
    above = ["/" + "/".join(parts[: count + 1]) for count in range(len(parts))]
    return next((one for one in above if os.path.isdir(one) and not os.stat(one).st_mode & 1), None)


def is_below(path: str, folder: str) -> bool:
    return os.path.commonpath([os.path.abspath(path), folder]) == folder


def hide(kernel: Kernel, folder: str, kept: list[str]) -> None:
    """An empty folder in its place, in which only the paths that are kept stand."""
    handles = {path: os.open(path, os.O_PATH) for path in kept}
    kernel.mount("tmpfs", folder, NO_SUID | NO_DEVICES, "size=1m,mode=755")
    bound: list[str] = []
    for path, handle in handles.items():
        if not any(is_below(path, one) for one in bound):
            os.makedirs(path, exist_ok=True)
            kernel.bind(f"/proc/self/fd/{handle}", path)
            bound.append(path)
        os.close(handle)


def limit(limits: dict[str, int]) -> None:
    seconds = limits["seconds"]
    for name, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, limits["memory"] << 20),
        (resource.RLIMIT_FSIZE, limits["file"] << 20),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, limits["processes"]),
    ):
        hard = resource.getrlimit(name)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (most, most))


def give_up_rights(kernel: Kernel, user: int) -> None:
    """Root becomes a user that owns nothing; nobody keeps or gains rights."""
    if os.getuid() == 0 and user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    kernel.control(NO_NEW_RIGHTS, 1)
    kernel.drop_capabilities()


def run_program(kernel: Kernel, asked: dict[str, Any], text: bytes, last_line: int) -> NoReturn:
    """In the process of the program; a byte is written to `last_line` when it has run to its end."""
    code = 1
    try:
        give_up_rights(kernel, asked["user"])
        kernel.control(DIE_WITH_PARENT, signal.SIGKILL)  # which a change of user takes away
        os.chdir(asked["work"])
        with open("program.py", "wb") as file:
            file.write(text)
        limit(asked["limits"])
        sys.argv[:] = ["program.py"]
        runpy.run_path("program.py", run_name="__main__")
        sys.stdout.flush()
        os.write(last_line, b"x")
        code = 0
    except SystemExit:  # it left before its last line
        code = 0
    except BaseException:
        traceback.print_exc(limit=-3)
    finally:
        leave(code)


def leave(code: int) -> NoReturn:
    """End at once, also where output cannot be written."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        code = 1
    os._exit(code)


def watch(program: int, deadline: float) -> int | None:
    """How the program ended, or None when it ran past its time; orphans that ended are buried on the way."""
    while time.monotonic() < deadline:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == program:
            return status
        if not ended:
            time.sleep(TICK)
    return None


def was_heard(pipe: int) -> bool:
    try:
        return os.read(pipe, 1) == b"x"
    except BlockingIOError:  # an orphan holds it open
        return False


def kill_all(program: int) -> None:
    """Without a namespace of processes: everything that descends from this process, until nothing is left."""
    while True:
        for victim in {program, *children(os.getpid())}:
            try:
                os.kill(victim, signal.SIGKILL)
            except OSError:
                continue
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def children(parent: int) -> set[int]:
    """Processes below this one, where the system shows them."""
    found: dict[int, int] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        try:
            with open(f"/proc/{int(name)}/stat", encoding="utf-8", errors="replace") as file:
                found[int(name)] = int(file.read().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
    below, grown = {parent}, True
    while grown:
        more = {child for child, above in found.items() if above in below} - below
        below, grown = below | more, bool(more)
    return below - {parent}


def tend(kernel: Kernel, report: int, asked: dict[str, Any], text: bytes, *, apart: bool) -> NoReturn:
    """Start the program, wait for it, say how it ended, and leave nothing of it behind."""
    user = asked["user"]
    if apart:
        kernel.control(DIE_WITH_PARENT, signal.SIGKILL)
        close_files(kernel, asked, user or os.getuid())
    else:
        kernel.control(ADOPT_ORPHANS, 1)
        if user:
            os.chown(asked["work"], user, user)
    deadline = time.monotonic() + asked["limits"]["seconds"]
    heard, last_line = os.pipe()
    program = os.fork()
    if program == 0:
        os.close(report)
        os.close(heard)
        run_program(kernel, asked, text, last_line)
    os.close(last_line)
    status = watch(program, deadline)
    if not apart:
        kill_all(program)
    os.set_blocking(heard, False)
    code = None if status is None else os.waitstatus_to_exitcode(status)
    told = {"apart": apart, "code": code, "whole": code == 0 and was_heard(heard)}
    os.write(report, json.dumps(told).encode())
    os._exit(0)


def main() -> None:
    """Reads the program from standard input; the first argument is what is asked, the second where to report."""
    asked, report = json.loads(sys.argv[1]), int(sys.argv[2])
    kernel = Kernel()
    kernel.control(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != asked["parent"]:  # it died before it could be noticed
        return
    text = sys.stdin.buffer.read()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    asked["user"] = NOBODY + os.getpid() if os.getuid() == 0 else 0
    if not asked["apart"] or not set_apart(kernel):
        tend(kernel, report, asked, text, apart=False)
    first = os.fork()
    if first == 0:
        tend(kernel, report, asked, text, apart=True)
    os.close(report)
    os.waitpid(first, 0)


if __name__ == "__main__":
    main()
