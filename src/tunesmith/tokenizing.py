"""Rules of a tokenizer file, which is data of others: how they fail, and how much longer they make a text."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tunesmith.errors import ModelError, Where

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

PANIC = "PanicException"  # of the library; no Exception, and no class that could be imported
LONGEST = 4000  # characters that may come of one; the most that rules in use promise is some 1,000
ANYTHING = frozenset[str]()  # characters of a rule that may meet all
OF_ONE = {"NFKC": 18, "NFKD": 18, "NFC": 4, "NFD": 4, "ByteLevel": 4, "Lowercase": 3, "BertNormalizer": 12}
BETWEEN = (
    "(?",
    "^",
    "$",
    "\\b",
    "\\B",
    "\\A",
    "\\z",
    "\\Z",
    "\\G",
    "\\K",
)  # patterns that may fit between two characters

T = TypeVar("T")


def encoded(backend: Backend, text: str, file: Path, *, specials: bool = False) -> Any:
    """The library's encoding of a text. Raises ModelError E066 when a rule of the file fails on it."""
    return _guarded(lambda: backend.encode(text, add_special_tokens=specials), file)


def decoded(backend: Backend, ids: list[int], file: Path, *, skip_special: bool = False) -> str:
    """The text of ids. Raises ModelError E066."""
    return _guarded(lambda: backend.decode(ids, skip_special_tokens=skip_special), file)


def _guarded(action: Callable[[], T], file: Path) -> T:
    try:
        return action()
    except BaseException as error:
        if type(error).__name__ != PANIC:
            raise
        raise ModelError(
            "E066",
            f"a rule of {file.name} fails on a text: {str(error)[:200]}",
            where=Where(str(file)),
            fixes=["use the tokenizer that was published with the model"],
        ) from None


def check_growth(backend: Backend, file: Path) -> None:
    """Refuse rules that make a text far longer, before any text meets them. Raises ModelError E066."""
    before = [*_rules(backend.normalizer), *_rules(backend.pre_tokenizer)]
    for rules in (before, list(_rules(backend.decoder))):
        longest = growth(rules)
        if longest > LONGEST:
            raise ModelError(
                "E066",
                f"rules of {file.name} may make {longest:,} characters of one; at most {LONGEST:,} are allowed",
                where=Where(str(file)),
                evidence=[f"{len(rules)} rules: {', '.join(sorted({str(rule.get('type')) for rule in rules}))}"],
                fixes=["use the tokenizer that was published with the model"],
            )


def growth(rules: list[dict[str, Any]]) -> int:
    """How many characters may come of one: a rule meets what an earlier one wrote where they share a character."""
    written: list[tuple[frozenset[str], int]] = []  # by each rule: its characters, and how many come of one
    for rule in rules:
        factor, meets, writes = _about(rule)
        earlier = (grown for made, grown in written if not meets or not made or meets & made)
        written.append((writes, factor * max(earlier, default=1)))
    return max((grown for _, grown in written), default=1)


def _about(rule: dict[str, Any]) -> tuple[int, frozenset[str], frozenset[str]]:
    """Characters that come of one by a rule, those it looks for, and those it writes."""
    kind = rule.get("type")
    if kind == "Replace":
        content, pattern = str(rule.get("content") or ""), rule.get("pattern") or {}
        if text := pattern.get("String"):
            return max(1, -(-len(content) // len(text))), frozenset(text), frozenset(content)
        return max(1, len(content) + _fits_between(str(pattern.get("Regex")))), ANYTHING, frozenset(content)
    if kind == "Prepend":
        content = str(rule.get("prepend") or "")
        return max(1, len(content)), ANYTHING, frozenset(content)
    if kind == "Precompiled":
        return _longest(str(rule.get("precompiled_charsmap") or "")), ANYTHING, ANYTHING
    return OF_ONE.get(str(kind), 1), ANYTHING, ANYTHING


def _fits_between(pattern: str) -> bool:
    """Whether a regular expression may match nothing, so that what replaces it is added to a text."""
    from tokenizers import Regex, normalizers

    if any(mark in pattern for mark in BETWEEN):
        return True
    return len(normalizers.Replace(Regex(pattern), "x").normalize_str("\0")) > 1


def _longest(charsmap: str) -> int:
    """The longest text in a map of characters of SentencePiece: the length of a trie, the trie, texts."""
    content = base64.b64decode(charsmap)
    texts = content[4 + int.from_bytes(content[:4], "little") :].split(b"\0")
    return max(1, *(len(text.decode("utf-8", "replace")) for text in texts))


def _rules(part: Any) -> Iterator[dict[str, Any]]:
    """The rules of a normaliser, pre-tokeniser or decoder, one after another."""
    if part is not None:
        yield from _flat(json.loads(part.__getstate__()))


def _flat(rule: dict[str, Any]) -> Iterator[dict[str, Any]]:
    inner = next((rule[name] for name in ("normalizers", "pretokenizers", "decoders") if name in rule), None)
    if inner is None:
        yield rule
    else:
        for each in inner:
            yield from _flat(each)
