"""Tokens that a recipe adds to a tokenizer: their ids, what they were spelt with, and the file that names them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.contained import check_file
from tunesmith.errors import Fix, ModelError, Where
from tunesmith.tokenizing import check_growth, encoded

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

FILE = "new_tokens.json"  # beside a tokenizer that holds such tokens
FIELD = "model.new_tokens"
LARGEST = 256 << 20  # bytes of a file of a tokenizer


@dataclass(frozen=True, slots=True)
class NewTokens:
    """What a folder says of the tokens that were added, in the order of their ids."""

    tokens: tuple[str, ...] = ()
    begin: str = "pieces"

    def write(self, folder: Path) -> None:
        content = {"tokens": list(self.tokens), "begin": self.begin}
        (folder / FILE).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def read_new_tokens(folder: Path) -> NewTokens:
    """The tokens that were added to the tokenizer in `folder`; none for most. Raises ModelError E339."""
    path = check_file(folder / FILE)
    if not path.is_file():
        return NewTokens()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        tokens, begin = content["tokens"], content.get("begin", "pieces")
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise TypeError("tokens is no list of texts")
        if begin not in ("pieces", "mean"):
            raise ValueError(f"begin is {str(begin)[:40]!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{FILE} does not list the tokens that were added: {error}"
        raise ModelError("E339", message, where=Where(str(path))) from error
    return NewTokens(tuple(tokens), begin)


def read_source(folder: Path) -> tuple[str, tuple[str, ...]]:
    """The text of `tokenizer.json` without added tokens that the embedding has no row for, and those.

    Some published models name such a token; nothing may ever become it. Raises ModelError E066 for a file that cannot
    be read, E515 when the embedding is smaller than the tokenizer's own vocabulary.
    """
    path = folder / "tokenizer.json"
    text = read_text(path)
    rows = _rows(folder / "config.json")
    if rows is None:
        return text, ()
    try:
        content = json.loads(text)
        vocabulary = content["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        known = max((id for id in ids if type(id) is int), default=-1)
        without = [entry["content"] for entry in content.get("added_tokens") or () if entry["id"] >= rows]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        told = f"{path.name} cannot be read: {type(error).__name__}: {error}"
        raise ModelError("E066", told[:200], where=Where(str(path)), fixes=["download the model again"]) from error
    if known >= rows:
        raise ModelError(
            "E515",
            f"the tokenizer has ids up to {known:,}, the embedding of the model has {rows:,} rows",
            where=Where(str(path)),
            evidence=[f"config.json: vocab_size {rows}"],
            fixes=["use the tokenizer that was published with the model"],
        )
    if not without:
        return text, ()
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] not in without]
    return json.dumps(content, ensure_ascii=False), tuple(map(str, without))


def read_text(path: Path) -> str:
    """A file of a tokenizer. Raises ModelError E066."""

    where = Where(str(check_file(path)))
    if not path.exists():
        fixes = ["download the model again, with its tokenizer files", "save it with a fast tokenizer"]
        raise ModelError("E066", f"the model folder has no {path.name}", where=Where(str(path.parent)), fixes=fixes)
    if not path.is_file() or path.stat().st_size > LARGEST:
        what = f"is larger than {LARGEST >> 20} MB" if path.is_file() else "is not a file"
        raise ModelError("E066", f"{path.name} {what}", where=where)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError("E066", f"cannot read {path.name}: {error}", where=where) from error


def _rows(path: Path) -> int | None:
    """`vocab_size` of a `config.json`, None where nothing says it."""
    if not path.is_file():
        return None
    try:
        config = json.loads(read_text(path))
        inner = config.get("text_config")
        said = (inner if isinstance(inner, dict) else {}).get("vocab_size", config.get("vocab_size"))
    except (ValueError, RecursionError, AttributeError, ModelError):
        return None  # told by what reads the model
    return said if type(said) is int and said > 0 else None


def extend(source: str, tokens: Sequence[str]) -> str:
    """The text of a `tokenizer.json` with further tokens, at the ids that transformers would give them.

    Raises ModelError E335 for a token that is there already.
    """
    if not tokens:
        return source
    from tokenizers import AddedToken, Tokenizer

    backend = Tokenizer.from_str(source)
    check_new(backend, tokens)
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in tokens])
    content = json.loads(source)
    content["added_tokens"] = [*(content.get("added_tokens") or []), *(entry_of(backend, token) for token in tokens)]
    return json.dumps(content, ensure_ascii=False)


def entry_of(backend: Backend, token: str) -> dict[str, Any]:
    rules = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": backend.token_to_id(token), "content": token, **rules}


def check_new(backend: Backend, tokens: Sequence[str]) -> None:
    known = {token: id for token in tokens if (id := backend.token_to_id(token)) is not None}
    if not known:
        return
    token, id = next(iter(known.items()))
    rest = [token for token in tokens if token not in known]
    raise ModelError(
        "E335",
        f"{token!r} is a token of the model already: its id is {id}",
        where=Where(field=FIELD),
        evidence=[f"{token!r}: {id}" for token, id in known.items()][:10],
        fixes=[Fix(f"{FIELD}=[{', '.join(rest)}]", {FIELD: rest}), "give it another name"],
    )


@dataclass(frozen=True, slots=True)
class Added:
    """Ids of the new tokens, the ids of the pieces each was spelt with, and how large the vocabulary was and is."""

    ids: tuple[int, ...]
    pieces: tuple[tuple[int, ...], ...]
    before: int
    size: int


def find_added(folder: Path, tokens: Sequence[str]) -> Added:
    """Where the tokens stand that are added to the tokenizer of a model folder. Raises ModelError E335."""
    from tokenizers import Tokenizer

    source, _ = read_source(folder)
    plain, longer = Tokenizer.from_str(source), Tokenizer.from_str(extend(source, tokens))
    check_growth(plain, folder / "tokenizer.json")
    known = longer.get_vocab(with_added_tokens=True)
    ids = tuple(known[token] for token in tokens)
    pieces = tuple(tuple(encoded(plain, token, folder / "tokenizer.json").ids) for token in tokens)
    before = max(plain.get_vocab(with_added_tokens=True).values()) + 1
    return Added(ids, pieces, before, max(before, *(id + 1 for id in ids)))


def write_extended(folder: Path, new: NewTokens) -> None:
    """Add the tokens to the tokenizer that lies in `folder`, and name them beside it."""
    if not new.tokens:
        return
    path, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    older = read_new_tokens(folder).tokens
    extended = extend(read_source(folder)[0], new.tokens)
    path.write_text(extended, encoding="utf-8")
    NewTokens((*older, *new.tokens), new.begin).write(folder)
    if not settings.is_file():
        return
    content = json.loads(settings.read_text(encoding="utf-8"))
    if isinstance(listed := content.get("added_tokens_decoder"), dict):  # what transformers 4 reads in its place
        entries = [entry for entry in json.loads(extended)["added_tokens"] if entry["content"] in new.tokens]
        for entry in entries:
            listed[str(entry["id"])] = {key: value for key, value in entry.items() if key != "id"}
        settings.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
