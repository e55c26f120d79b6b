"""Files that may be opened: regular ones, never a pipe that waits for ever or a device without an end."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

PIECE = 1 << 16  # bytes at once: a read takes as much memory as it asks for, whatever the file holds
KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


class NotRegular(OSError):
    """What stands in a file's place is something else, or is larger than such a file ever is."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EINVAL, reason, str(path))


def kind_of(mode: int) -> str | None:
    """What a mode is of, None for a regular file."""
    return None if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "something else")


def open_regular(path: Path) -> BufferedReader:
    """Open for reading without waiting for anybody; NotRegular for what is no regular file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        kind = kind_of(os.fstat(descriptor).st_mode)
        if kind is not None:
            raise NotRegular(path, f"it is {kind}, not a file")
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, largest: int) -> bytes:
    """The bytes of a small file; NotRegular when it is larger than `largest`."""
    content = bytearray()
    with open_regular(path) as file:
        while piece := file.read(PIECE):
            content += piece
            if len(content) > largest:
                raise NotRegular(path, f"it is larger than {largest:,} bytes")
    return bytes(content)
