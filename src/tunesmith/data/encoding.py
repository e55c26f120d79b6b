"""Text that is not UTF-8: which encoding it probably is, where the first wrong byte stands, how to convert it."""

from __future__ import annotations

import shlex
from pathlib import Path

from tunesmith.errors import Diagnostic, Fix, Where

LATIN_MARKS = frozenset("‘’“”„‚–—…•€£¥§©®™°«»¿¡·ªº²³¹½¼¾±×÷\xa0")


def wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, by the byte order mark or by the NULs that Latin letters leave in it."""
    if head.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    part = head[:4096]
    half = len(part) // 2
    even, odd = part[0::2].count(0), part[1::2].count(0)
    if half >= 4 and odd > 0.3 * half and even < 0.05 * half:
        return "UTF-16LE"
    if half >= 4 and even > 0.3 * half and odd < 0.05 * half:
        return "UTF-16BE"
    return None


def wide_fault(path: Path, encoding: str) -> Diagnostic:
    """The whole file is UTF-16 or UTF-32 (E037)."""
    return Diagnostic(
        "E037",
        f"the file is {encoding}, not UTF-8",
        where=Where(str(path), 1, 1),
        fixes=(*_convert(path, encoding), Fix("make a repaired copy", command=f"tunesmith data fix {quoted(path)}")),
    )


def byte_fault(path: Path, number: int, offset: int, line: bytes, error: UnicodeDecodeError) -> Diagnostic:
    """The first byte of a line that is not UTF-8 (E037); `offset` is where the line begins in the file."""
    start = error.start
    around = line[max(0, start - 20) : start + 20].decode("utf-8", "replace")
    guess = latin_encoding(line)
    if guess is not None:
        message = f"the file looks like {guess}, not UTF-8: byte {offset + start:,} is 0x{line[start]:02x}"
        fixes = _convert(path, guess)
    else:
        message = f"byte {offset + start:,} is not UTF-8: 0x{line[start : start + 4].hex(' ')}"
        fixes = (Fix("write the file again as UTF-8, or download it again"),)
    return Diagnostic(
        "E037",
        message,
        where=Where(str(path), number, len(line[:start].decode("utf-8", "replace")) + 1),
        evidence=(printable(around), f"bytes {line[max(0, start - 8) : start + 8].hex(' ')}"),
        fixes=fixes,
    )


def latin_encoding(line: bytes) -> str | None:
    """ISO-8859-1 or Windows-1252 when every high byte reads as a letter or a usual mark and none as UTF-8."""
    high = bytes(byte for byte in line if byte >= 0x80)
    if not high or not line.decode("utf-8", "ignore").isascii():
        return None
    letters = high.decode("cp1252", "replace")
    if not all(letter.isalpha() or letter in LATIN_MARKS for letter in letters):
        return None
    return "WINDOWS-1252" if any(byte < 0xA0 for byte in high) else "ISO-8859-1"


def nul_fault(path: Path, number: int, offset: int, column: int) -> Diagnostic:
    """A raw NUL byte (E038); `offset` counts bytes in the file."""
    return Diagnostic(
        "E038",
        f"a NUL byte stands at byte {offset:,}: text never holds one",
        where=Where(str(path), number, column),
        fixes=(Fix("write or download the file again: NULs are what a crash or a full disk leaves behind"),),
    )


def printable(text: str) -> str:
    """The text on one line, with a mark for every character that would move the cursor."""
    return "".join(letter if letter.isprintable() else "·" for letter in text)


def quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _convert(path: Path, encoding: str) -> tuple[Fix, ...]:
    new = path.with_name(f"{path.name.split('.')[0]}.utf8{''.join(path.suffixes)}")
    return (Fix("convert it", command=f"iconv -f {encoding} -t UTF-8 {quoted(path)} > {quoted(new)}"),)
