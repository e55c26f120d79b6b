"""Sources: a file, folder, glob or hub data set becomes a strict stream of records."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from tunesmith.data.config import SourceConfig
from tunesmith.data.content import KINDS, Kind, cannot_read, is_packed, kind_of, read_text_lines
from tunesmith.data.formats import FIELDS
from tunesmith.data.hub import PREFIX, hub_revision, read_hub
from tunesmith.data.json_list import read_json
from tunesmith.data.jsonl import read_jsonl
from tunesmith.data.tables import read_csv, read_parquet
from tunesmith.data.tally import OnBad, Tally
from tunesmith.errors import DataError, Fix, Where, nearest
from tunesmith.types import Record

TEXT_LIMIT = 256 * 2**20  # characters of one text file read as one document


def find_files(path: str) -> list[Path]:
    """The data files of a file, folder (with its sub-folders) or glob, sorted; hidden and unknown names are left out.

    Raises DataError (E041) when nothing is found or something is not a regular file, and never opens any.
    """
    given = Path(path).expanduser()
    try:
        mode = given.stat().st_mode
    except OSError as error:
        if isinstance(error, FileNotFoundError) and re.search(r"[*?\[]", path):
            return _glob(given)
        raise _missing(given, error) from error
    if stat.S_ISDIR(mode):
        return _folder(given)
    _check_regular(given, mode)
    if kind_of(given) is None:
        raise _unknown_kind(given)
    return [given]


def check_present(sources: Iterable[SourceConfig]) -> None:
    """Raise DataError (E041) for the first source without files; nothing is opened, and the hub is not asked."""
    for source in sources:
        if not source.path.startswith(PREFIX):
            find_files(source.path)


def read_records(path: Path, tally: Tally | None = None, *, by_line: bool = False) -> Iterator[Record]:
    """Every record of one file as a stream; bad ones are collected in `tally` and raised when the file ends.

    A .txt file is one record with the field `text`; with `by_line` every non-blank line is one with the field `line`.
    """
    tally = tally or Tally()
    for record in scan(path, tally, (), by_line=by_line):
        if not tally.failing:
            yield record


def read_source(
    source: SourceConfig, tally: Tally | None = None, limit: int | None = None, *, on_bad: OnBad = "error"
) -> Iterator[Record]:
    """The first `limit` records of a source, file after file; a given Tally decides on bad ones and counts them."""
    tally = tally or Tally(on_bad)
    left = limit
    for records in open_source(source, tally):
        for record in records:
            if tally.failing:
                continue
            yield record
            left = None if left is None else left - 1
            if left == 0:
                return


def open_source(source: SourceConfig, tally: Tally) -> Iterator[Iterator[Record]]:
    """One stream of records per file; it goes on after a fault so that all are counted, and raises at its end."""
    if source.path.startswith(PREFIX):
        yield read_hub(source.path, tally)
        return
    by_line = source.columns.get("text") == "line"
    wanted = FIELDS | set(source.columns.values())
    for path in find_files(source.path):
        yield scan(path, tally, wanted, by_line=by_line)


def scan(path: Path, tally: Tally, wanted: Collection[str], *, by_line: bool) -> Iterator[Record]:
    """The good records of one file, also after a bad one; what was kept is raised at its end.

    `wanted` names columns that a parquet file must be able to give.
    """
    kind = kind_of(path)
    if kind is None:
        raise _unknown_kind(path)
    try:
        _check_regular(path, path.stat().st_mode)
    except OSError as error:
        raise cannot_read(path, error) from error
    tally.start_file()
    try:
        for record in _open(path, kind, tally, wanted, by_line):
            tally.records += 1
            yield record
    except DataError as error:
        tally.add_kept(error)
        raise
    tally.end_file(str(path))


def fingerprint_source(source: SourceConfig) -> str:
    """A hash of what the source holds now: the bytes of its files, or the commit of its hub data set."""
    if source.path.startswith(PREFIX):
        return f"{source.path}@{hub_revision(source.path)}"
    return fingerprint_files(find_files(source.path))


def fingerprint_files(paths: Sequence[Path]) -> str:
    """A sha256 over the names (without folders), sizes and bytes of the files in the given order."""
    total = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256")
                size = file.tell()
        except OSError as error:
            raise cannot_read(path, error) from error
        total.update(f"{path.name}\0{size}\0{content.hexdigest()}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _open(path: Path, kind: Kind, tally: Tally, wanted: Collection[str], by_line: bool) -> Iterator[Record]:
    if kind == "jsonl":
        return read_jsonl(path, tally)
    if kind == "json":
        return read_json(path, tally)
    if kind == "parquet":
        if is_packed(path):
            raise DataError("E040", "a Parquet file is never gzip-compressed as a whole", where=Where(str(path), 1))
        return read_parquet(path, tally, wanted)
    if kind == "txt":
        return _read_lines(path) if by_line else _read_text(path)
    return read_csv(path, kind, tally)


def _read_text(path: Path) -> Iterator[Record]:
    """The whole file as one text; CRLF is read as LF and line ends at the end are dropped."""
    lines: list[str] = []
    size = 0
    for line in read_text_lines(path, "txt"):
        lines.append(line)
        size += len(line) + 1
        if size > TEXT_LIMIT:
            raise DataError(
                "E039",
                f"longer than {TEXT_LIMIT // 2**20} MB: a .txt file is one document",
                where=Where(str(path), len(lines)),
                fixes=[
                    Fix("read every line as a document", set={"data.train.0.columns.text": "line"}),
                    'split it into several files, or write jsonl: {"text": ...}',
                ],
            )
    text = "\n".join(lines).rstrip("\n")
    if text.strip():
        yield Record({"text": text}, str(path), 1)


def _read_lines(path: Path) -> Iterator[Record]:
    for number, line in enumerate(read_text_lines(path, "txt"), 1):
        if line.strip():
            yield Record({"line": line}, str(path), number)


def _folder(folder: Path) -> list[Path]:
    """All data files below; each folder is visited once, however links lead to it."""
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        state = os.stat(parent)
        if (state.st_dev, state.st_ino) in seen:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in names if not name.startswith(".") and kind_of(Path(name))]
    if not found:
        raise DataError("E041", "the folder holds no data files", where=Where(str(folder)), fixes=[_kinds()])
    return _regular(found)


def _glob(pattern: Path) -> list[Path]:
    parts = pattern.parts
    first = next(index for index, part in enumerate(parts) if re.search(r"[*?\[]", part))
    base = Path(*parts[:first])
    try:
        matches = [path for path in base.glob(str(Path(*parts[first:]))) if not path.is_dir()]
    except (ValueError, OSError) as error:
        raise DataError("E041", f"the pattern cannot be used: {error}", where=Where(str(pattern))) from error
    found = [path for path in matches if kind_of(path)]
    if not found:
        what = f"{len(matches)} files match, none of a known kind" if matches else "no file matches the pattern"
        raise DataError("E041", what, where=Where(str(pattern)), fixes=[_kinds(), f"look into the folder {base}"])
    return _regular(found)


def _regular(paths: list[Path]) -> list[Path]:
    for path in paths:
        try:
            _check_regular(path, path.stat().st_mode)
        except OSError as error:
            raise _missing(path, error) from error
    return sorted(paths)


def _check_regular(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    names = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
    what = next((name for test, name in names if test(mode)), "a device")
    raise DataError(
        "E041",
        f"is {what}, not a file: data is read more than once, so it must stay where it is",
        where=Where(str(path)),
        fixes=["write it to a file first"],
    )


def _missing(path: Path, error: OSError) -> DataError:
    if not isinstance(error, FileNotFoundError):
        return cannot_read(path, error)
    if path.is_symlink():
        message = f"the link leads nowhere: {os.readlink(path)}"
        return DataError("E041", message, where=Where(str(path)), fixes=["mend or remove the link"])
    try:
        names = os.listdir(path.parent)
    except OSError:
        return DataError(
            "E041",
            f"there is no folder {path.parent}",
            where=Where(str(path)),
            fixes=[f"relative paths start at {Path.cwd()}"],
        )
    close = nearest(path.name, names)
    fixes = [f"did you mean {path.with_name(close)}?"] if close else []
    return DataError(
        "E041",
        "there is no such file",
        where=Where(str(path)),
        fixes=[*fixes, f"relative paths start at {Path.cwd()}"],
    )


def _unknown_kind(path: Path) -> DataError:
    return DataError(
        "E040", f"the name does not say what the file is: {path.name}", where=Where(str(path), 1), fixes=[_kinds()]
    )


def _kinds() -> str:
    return f"known names end in {' '.join(KINDS)}, each also with .gz"
