"""TensorBoard event files without TensorBoard: TFRecord frames around hand-encoded Event messages.

Formats: tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto, framework/summary.proto.
"""

from __future__ import annotations

import math
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path


def _table() -> tuple[int, ...]:
    polynomial = 0x82F63B78  # Castagnoli, reflected
    rows = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (polynomial if value & 1 else 0)
        rows.append(value)
    return tuple(rows)


_TABLE = _table()


def crc32c(content: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in content:
        value = _TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def masked_crc(content: bytes) -> int:
    """The checksum as TFRecord stores it: rotated and shifted, so that a checksum of a checksum is harmless."""
    value = crc32c(content)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(content: bytes) -> bytes:
    """length, checksum of length, content, checksum of content."""
    length = struct.pack("<Q", len(content))
    return length + struct.pack("<I", masked_crc(length)) + content + struct.pack("<I", masked_crc(content))


def _varint(number: int) -> bytes:
    number &= 0xFFFFFFFFFFFFFFFF  # negative numbers take ten bytes
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _text(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def event(wall: float, step: int, what: bytes) -> bytes:
    """Event: wall_time = 1, step = 2, then one of file_version, summary, session_log."""
    return b"\x09" + struct.pack("<d", wall) + b"\x10" + _varint(step) + what


def version() -> bytes:
    return _text(3, b"brain.Event:2")


def scalars(values: Mapping[str, float]) -> bytes:
    """Summary = 5, its values = 1 with tag = 1 and simple_value = 2."""
    parts = (_text(1, name.encode()) + b"\x15" + _float(value) for name, value in values.items())
    return _text(5, b"".join(_text(1, part) for part in parts))


def session_start() -> bytes:
    """SessionLog = 7 with status START = 1: a reader then drops what earlier files say of this step and later ones."""
    return _text(7, b"\x08\x01")


def _float(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", math.copysign(math.inf, value))


class EventFile:
    """Appends scalars to one file per attempt in `folder`; OSError where the disk refuses.

    The name begins with the attempt, because readers take files in the order of their names and clocks may jump.
    """

    def __init__(self, folder: Path, attempt: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"events.out.tfevents.{attempt:010d}.{socket.gethostname()}"
        taken = len(list(folder.glob(f"{stem}.*")))
        self.path = folder / f"{stem}.{taken}"
        self._file = self.path.open("xb", buffering=0)
        self._append(0, version())

    def write(self, step: int, values: Mapping[str, float], wall: float | None = None) -> None:
        self._append(step, scalars(values), wall)

    def resume(self, first_step: int) -> None:
        """Mark that everything from `first_step` on is written anew."""
        self._append(first_step, session_start())

    def close(self) -> None:
        self._file.close()

    def _append(self, step: int, what: bytes, wall: float | None = None) -> None:
        content = frame(event(time.time() if wall is None else wall, step, what))
        while content:
            content = content[self._file.write(content) :]
