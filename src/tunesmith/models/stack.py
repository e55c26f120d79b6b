"""Adapters that are merged into a base as it is loaded, and the note of them in the folder of one trained above."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import Fix, ModelError, Where
from tunesmith.models.content import content_hash
from tunesmith.models.locate import locate
from tunesmith.models.safety import ADAPTER_CONFIG, read_json_object
from tunesmith.vocabulary import read_new_tokens

STACK_FILE = "merged_adapters.json"
FIELD = "model.merged_adapters"
Stack = tuple["Below", ...]


@dataclass(frozen=True, slots=True)
class Below:
    """An adapter that is part of the base of another one: where it is, and what it held."""

    folder: str
    hash: str


def find_stack(names: Sequence[str]) -> Stack:
    """The adapters of `model.merged_adapters`. Raises ModelError E364 for what is no adapter, E339 for new tokens."""
    return tuple(Below(str(folder.absolute()), content_hash(folder)) for folder in map(locate_adapter, names))


def locate_adapter(name: str) -> Path:
    folder = locate(name)
    if read_new_tokens(folder).tokens:
        raise ModelError(
            "E339",
            f"{name} has tokens of its own, which cannot be merged below others",
            where=Where(str(folder), field=FIELD),
            fixes=[Fix("make it a model first, and name that as model.path", command=f"tunesmith merge {name} OUT")],
        )
    if (folder / ADAPTER_CONFIG).is_file():
        return folder
    raise ModelError(
        "E364",
        f"{name} is a whole model, not an adapter: there is nothing to merge",
        where=Where(str(folder), field=FIELD),
        fixes=[Fix(f"model.path={name}", {"model.path": name, FIELD: []})],
    )


def stacked_hash(base: Path, names: Sequence[str]) -> str:
    """What a base with adapters merged into it holds; without any that of its folder."""
    whole = content_hash(base)
    if not names:
        return whole
    return hashlib.sha256("\n".join([whole, *(below.hash for below in find_stack(names))]).encode()).hexdigest()


def read_stack(folder: Path) -> Stack:
    """What the adapter in `folder` was trained above; nothing for most."""
    path = folder / STACK_FILE
    if not path.is_file():
        return ()
    listed = read_json_object(path).get("merged_adapters")
    try:
        return tuple(Below(str(entry["folder"]), str(entry["hash"])) for entry in listed)  # pyright: ignore[reportOptionalIterable]
    except (TypeError, KeyError) as error:
        raise ModelError("E364", f"{STACK_FILE} lists no folders with their hashes", where=Where(str(path))) from error


def write_stack(folder: Path, base: str, stack: Stack) -> None:
    """Note it in an adapter's folder, with a README for programs and people who know nothing of it."""
    if not stack:
        return
    content: dict[str, Any] = {"base": base, "merged_adapters": [asdict(below) for below in stack]}
    (folder / STACK_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(told(folder, base, stack), encoding="utf-8")


def told(folder: Path, base: str, stack: Stack) -> str:
    names = " ".join(shlex.quote(below.folder) for below in stack)
    return (
        f"# An adapter above other adapters\n\nThis adapter was trained on `{base}` with these adapters merged into "
        f"it, in this order:\n\n" + "".join(f"- `{below.folder}`\n" for below in stack) + "\nTunesmith reads "
        f"`{STACK_FILE}` and merges them by itself. For PEFT merge them first, and load this adapter on the result:\n\n"
        f"```\ntunesmith adapters merge {names} {shlex.quote(base)} OUT\n```\n\nOn the plain base it predicts "
        "something else.\n"
    )


def check_stack(stack: Stack, owner: Path) -> tuple[str, ...]:
    """The folders of a note, each still holding what it held. Raises ModelError E364."""
    for below in stack:
        folder = Path(below.folder)
        if not (folder / ADAPTER_CONFIG).is_file():
            raise changed(owner, f"{below.folder}, which it was trained above, is not there any more")
        if content_hash(folder) != below.hash:
            raise changed(owner, f"{below.folder}, which it was trained above, holds other weights now")
    return tuple(below.folder for below in stack)


def above_others(name: str, wanted: Stack, found: Stack, rest: Sequence[str]) -> ModelError:
    """E364: an adapter stands above others than it was trained above; `rest` is what follows it."""
    listed = ", ".join(below.folder for below in wanted) or "the plain base"
    here = ", ".join(below.folder for below in found) or "the plain base"
    names = [*(below.folder for below in wanted), *rest]
    return ModelError(
        "E364",
        f"{name} was trained above {listed}, and here it stands above {here}",
        where=Where(field=FIELD),
        fixes=[Fix(f"{FIELD}=[{', '.join(names)}]", {FIELD: names})],
    )


def changed(owner: Path, why: str) -> ModelError:
    return ModelError(
        "E364",
        f"the adapter cannot be used: {why}",
        where=Where(str(owner / STACK_FILE)),
        fixes=["put the folder back as it was", f"write its new place into {STACK_FILE} if it has only moved"],
    )
