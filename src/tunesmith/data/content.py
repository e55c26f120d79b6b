"""A data file as limited lines of bytes: its kind by name, proven by its content, unpacked within bounds."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from tunesmith.data.encoding import byte_fault, nul_fault, quoted, wide_encoding, wide_fault
from tunesmith.data.tally import data_error
from tunesmith.errors import DataError, Diagnostic, Fix, Unsafe, Where

Kind = Literal["jsonl", "json", "csv", "tsv", "parquet", "txt"]

KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "txt",
}
LINE_LIMIT = 16 * 2**20  # bytes of one line or object
BLOCK = 2**20
BOM = b"\xef\xbb\xbf"
GZIP = b"\x1f\x8b"
BOMB_RATIO = 100  # unpacked bytes per packed byte
BOMB_FLOOR = 64 * 2**20  # always allowed

MAGIC = (
    (b"PAR1", "is a Parquet file", "name it .parquet"),
    (GZIP, "is compressed by gzip", "add .gz to its name"),
    (b"PK\x03\x04", "is a zip archive (or an .xlsx sheet)", "unpack it, or save the sheet as CSV"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd", "unpack it: zstd -d FILE"),
    (b"BZh", "is compressed by bzip2", "unpack it: bunzip2 FILE"),
    (b"\xfd7zXZ\x00", "is compressed by xz", "unpack it: unxz FILE"),
    (b"ARROW1", "is an Arrow file", "save it as Parquet"),
    (b"%PDF-", "is a PDF document", "extract its text first"),
    (b"SQLite format 3\x00", "is a SQLite database", "export the table as CSV"),
    (b"\x80\x04\x95", "is a Python pickle, which is never read", "save the data as jsonl"),
)
LFS = b"version https://git-lfs.github.com/spec/"
HTML = re.compile(rb"\s*<(!doctype\s+html|html|head|body|\?xml)\b", re.IGNORECASE)
TITLE = re.compile(rb"<title[^<>]*>([^<]{1,200})", re.IGNORECASE)


class Line(NamedTuple):
    """A physical line without its line end; `content` is None when it was longer than the limit."""

    number: int
    offset: int  # bytes of unpacked text before it
    content: bytes | None


def kind_of(path: Path) -> Kind | None:
    """The kind the name promises, or None; `.gz` is looked through."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return KINDS.get(suffixes[-1]) if suffixes else None


def is_packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def read_lines(path: Path, kind: Kind) -> Iterator[Line]:
    """The physical lines of a file of any size; memory stays below twice the line limit."""
    number, offset, size = 1, 0, 0
    carried: list[bytes] = []  # the beginning of a line that crosses blocks, `size` bytes; emptied beyond the limit
    try:
        for block in read_blocks(path, kind):
            blank = kind == "jsonl" and block.isspace() and size <= LINE_LIMIT and all(map(bytes.isspace, carried))
            if blank and (breaks := block.count(b"\n")):  # at once: a million blank lines fit into a block
                end = block.rfind(b"\n") + 1
                number, offset = number + breaks, offset + size + end
                carried, size = ([block[end:]] if block[end:] else []), len(block) - end
                continue
            pieces = block.split(b"\n")
            rest = pieces.pop()
            for piece in pieces:
                content: bytes | None = piece
                length = size + len(piece)
                if size:
                    content = b"".join((*carried, piece)) if length <= LINE_LIMIT else None
                    carried, size = [], 0
                yield Line(number, offset, content)
                offset += length + 1
                number += 1
            size += len(rest)
            carried = [*carried, rest] if size <= LINE_LIMIT else []
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise broken_gzip(path, error, number, offset) from error
    if size:
        yield Line(number, offset, b"".join(carried) if size <= LINE_LIMIT else None)


def read_text_lines(path: Path, kind: Kind) -> Iterator[str]:
    """The lines as text without line ends; any bad byte, NUL or overlong line ends the tally with a DataError."""
    for number, offset, content in read_lines(path, kind):
        if content is None:
            raise data_error(too_long(path, number))
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise data_error(byte_fault(path, number, offset, content, error)) from error
        if (at := text.find("\0")) >= 0:
            raise data_error(nul_fault(path, number, offset + content.find(b"\0"), at + 1))
        yield text.removesuffix("\r")


def read_blocks(path: Path, kind: Kind) -> Iterator[bytes]:
    """Blocks of at most 1 MB, unpacked, without a byte order mark; refuses content that is not of the kind (E040).

    A packed file that grows over 100 times its size is refused (Unsafe, E046); errors of gzip itself pass through.
    """
    try:
        with path.open("rb") as raw:
            blocks = _unpacked(raw, path) if is_packed(path) else iter(lambda: raw.read(BLOCK), b"")
            for index, block in enumerate(blocks):
                yield block if index else _proven(block, path, kind)
    except gzip.BadGzipFile:
        raise
    except OSError as error:
        raise cannot_read(path, error) from error


def too_long(path: Path, number: int) -> Diagnostic:
    """A line or object over the limit (E039)."""
    return Diagnostic(
        "E039",
        f"longer than {LINE_LIMIT // 2**20} MB, the limit of one record",
        where=Where(str(path), number),
        fixes=(Fix("split it into several records; is a line break missing?"),),
    )


def broken_gzip(path: Path, error: Exception, line: int, offset: int) -> DataError:
    """A compressed file that ends early or does not match its checksum (E045)."""
    what = "ends too early" if isinstance(error, EOFError) else f"is damaged ({error})"
    return DataError(
        "E045",
        f"the gzip file {what}",
        where=Where(str(path), line),
        evidence=[f"the last whole line is {line - 1:,}; it ends {offset:,} bytes into the unpacked text"],
        fixes=["download it again and compare its size or checksum"],
    )


def bomb_bound(packed: int) -> int:
    """How many bytes may come of a file of `packed` bytes."""
    return max(BOMB_FLOOR, BOMB_RATIO * packed)


def bomb(path: Path, packed: int, fix: Fix) -> Unsafe:
    """A compressed file that grows beyond its bound (E046)."""
    return Unsafe(
        "E046",
        f"unpacks to more than {bomb_bound(packed) // 2**20:,} MB from {packed:,} bytes: a compression bomb?",
        where=Where(str(path), 1),
        evidence=[f"the bound is {BOMB_RATIO} times the packed size, and at least {BOMB_FLOOR // 2**20} MB"],
        fixes=[fix],
    )


def cannot_read(path: Path, error: OSError) -> DataError:
    """The operating system refused to open or read the file (E041)."""
    reason = error.strerror or str(error)
    return DataError(
        "E041",
        f"cannot be read: {reason}",
        where=Where(str(path), 1),
        fixes=["check that it exists and is yours to read"],
    )


def _unpacked(raw: BinaryIO, path: Path) -> Iterator[bytes]:
    head = raw.read(BLOCK)
    if head and not head.startswith(GZIP):
        what, fix = _named(head) or ("is not compressed by gzip", "take .gz off its name")
        raise DataError("E040", f"named .gz, but {what}", where=Where(str(path), 1), fixes=[fix])
    raw.seek(0)
    packed = path.stat().st_size
    unpacked = 0
    with gzip.GzipFile(fileobj=raw) as stream:
        while block := stream.read1(BLOCK):
            unpacked += len(block)
            if unpacked > bomb_bound(packed):
                fix = Fix("unpack it yourself if you trust it", command=f"gunzip -k {quoted(path)}")
                raise bomb(path, packed, fix)
            yield block


def _proven(head: bytes, path: Path, kind: Kind) -> bytes:
    """The first block without its byte order mark, when it looks like what the name says."""
    if encoding := wide_encoding(head):
        raise data_error(wide_fault(path, encoding))
    head = head.removeprefix(BOM)
    what, fix = _named(head) or (None, "")
    if what is None and kind != "txt" and HTML.match(head):
        title = TITLE.search(head)
        named = f" with the title {title[1].decode('utf-8', 'replace').strip()!r}" if title else ""
        what, fix = f"is a web page{named}", "download the file itself: this is the page about it, or an error page"
    if what is not None:
        raise DataError("E040", f"named {path.suffix}, but {what}", where=Where(str(path), 1), fixes=[fix])
    return head


def _named(head: bytes) -> tuple[str, str] | None:
    """What the first bytes say the file is, and what to do; None for text."""
    if head.startswith(LFS):
        return "is a Git LFS pointer, not the data", "fetch the data: git lfs pull"
    return next(((what, fix) for magic, what, fix in MAGIC if head.startswith(magic)), None)
