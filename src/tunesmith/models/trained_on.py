"""The base that an adapter was trained on, known again by its bytes: names and shapes fit many models."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path

from tunesmith.contained import check_contained
from tunesmith.errors import Fix, ModelError, Where
from tunesmith.models.headers import read_header
from tunesmith.models.safety import read_json_object

MARK = "trained_on.json"  # beside an adapter's settings
READ = 256  # bytes of each tensor, from its middle


def mark_base(adapter: Path, base: Path) -> None:
    """Note in the folder of an adapter which weights it was trained on."""
    content = {"base": str(base), "fingerprint": fingerprint(base)}
    (adapter / MARK).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_base(adapter: Path, base: Path) -> None:
    """ModelError E514 when the folder of an adapter says that it was trained on other weights."""
    path = adapter / MARK
    if not path.is_file() or not (base / "config.json").is_file():
        return
    noted = read_json_object(path)
    wanted, here = str(noted.get("fingerprint")), fingerprint(base)
    if wanted == here:
        return
    named = str(noted.get("base"))
    there = Path(named).is_dir()
    fixes = [Fix(f"model.path={named}", {"model.path": named})] if there and Path(named) != base else []
    raise ModelError(
        "E514",
        f"the adapter was trained on other weights than those of {base}",
        where=Where(str(adapter)),
        evidence=[f"trained on {wanted[:16]} ({named})", f"this is   {here[:16]}"],
        fixes=[
            *fixes,
            Fix("load it on the model it was trained on"),
            Fix(f"if this is the same model in another form, remove {path}"),
        ],
    )


def fingerprint(folder: Path) -> str:
    """sha256 over the name, type, shape and some bytes of every tensor: milliseconds, however large the model is."""
    check_contained(folder)
    found = sorted(entry for path in sorted(folder.glob("*.safetensors")) for entry in _glimpses(path))
    total = hashlib.sha256()
    for name, about, glimpse in found:
        total.update(f"{name}\0{about}\0".encode("utf-8", "surrogatepass") + glimpse)
    return total.hexdigest()


def _glimpses(path: Path) -> Iterator[tuple[str, str, bytes]]:
    header = read_header(path)
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        places = json.loads(file.read(length))
        for name, info in header.items():
            begin, end = places[name]["data_offsets"]
            middle = begin + max(0, (end - begin - READ) // 2)
            file.seek(8 + length + middle)
            yield name, f"{info.dtype} {info.shape}", file.read(min(READ, end - begin))
