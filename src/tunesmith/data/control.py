"""Control tokens: which texts steer a model, and how the same text written by a user is kept apart from them."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend

from tunesmith.errors import DataError
from tunesmith.tokenizing import encoded

# Private-use characters that no text can guess; a template copies them, and case or escaping filters leave them alone.
_SECRET = "".join(chr(0xE100 + byte) for byte in secrets.token_bytes(6))
BREAK = "\ue0fb" + _SECRET
_OPEN, _CLOSE = "\ue0fc" + _SECRET, "\ue0fd" + _SECRET
_MARKER_SHAPE = re.compile(r"<\|.+\|>|<｜.+｜>|</?s>|<(bos|eos|pad|unk)>|\[/?INST\]")


class ControlTokens:
    """The added tokens that are special, named in the tokenizer's settings or shaped like turn markers.

    Plain tags such as <think> are not among them: answers may hold them as text and train them. Nor are `new` tokens,
    which a recipe named because texts hold them.
    """

    def __init__(self, source: str, named: Iterable[str], file: Path, new: Iterable[str] = ()) -> None:
        self._file = file
        self._source = source
        self._added = {token["content"]: token for token in json.loads(source).get("added_tokens", [])}
        names, own = set(named), set(new)
        self.ids = {
            text: int(token["id"])
            for text, token in self._added.items()
            if text and (token.get("special") or text in names or _MARKER_SHAPE.fullmatch(text)) and text not in own
        }
        self.special_ids = frozenset(int(token["id"]) for token in self._added.values() if token.get("special"))
        longest_first = sorted(self.ids, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._wrapped: Backend | None = None
        self._original: dict[int, int] = {}

    def find(self, value: Any) -> str | None:
        """The first control text inside a JSON-able value."""
        if isinstance(value, str):
            found = self.pattern.search(value)
            return found.group() if found else None
        if isinstance(value, dict):
            value = [*value, *value.values()]
        if isinstance(value, list | tuple):
            return next((text for text in map(self.find, value) if text is not None), None)
        return None

    def shield(self, value: Any) -> Any:
        """Break every control text inside a JSON-able value, so that a template can carry it to `encode`."""
        if isinstance(value, str):
            while self.pattern.search(value):
                value = self.pattern.sub(lambda match: match.group()[0] + BREAK + match.group()[1:], value)
            return value
        if isinstance(value, dict):
            return {self.shield(key): self.shield(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.shield(entry) for entry in value]
        return value

    def encode(self, text: str, *, specials: bool) -> tuple[list[int], np.ndarray]:
        """Encode text in which broken control texts stay plain text; also where each token starts and ends in `text`.

        With `specials` the unbroken ones become control tokens, else none does. Offsets are int64 (T, 2).
        """
        wrapped, places = self._wrap(text) if specials else (text, None)
        backend = self._backend()
        encoding = encoded(backend, wrapped, self._file)
        known = set(self.ids.values())
        ids = []
        for raw in encoding.ids:
            if raw not in self._original and raw in known:
                raise DataError(
                    "E067",
                    f"this tokenizer cannot write the control token {self.text(raw)!r} as plain text",
                    fixes=["remove the control token from the record"],
                )
            ids.append(self._original.get(raw, raw))
        offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        return ids, offsets if places is None else places[offsets]

    def text(self, id: int) -> str:
        return next(text for text, known in self.ids.items() if known == id)

    def _backend(self) -> Backend:
        """The tokenizer with every control token renamed to its wrapped form; built when first needed."""
        if self._wrapped is None:
            content = json.loads(self._source)
            for token in content["added_tokens"]:
                if token["content"] in self.ids:
                    token["content"] = _OPEN + token["content"] + _CLOSE
            content.update(post_processor=None, truncation=None, padding=None)
            self._wrapped = Backend.from_str(json.dumps(content))
            for text, token in self._added.items():
                renamed = self._wrapped.token_to_id(_OPEN + text + _CLOSE if text in self.ids else text)
                if renamed is None:
                    raise AssertionError(f"{text!r} was renamed, not removed")
                self._original[renamed] = int(token["id"])
        return self._wrapped

    def _wrap(self, text: str) -> tuple[str, np.ndarray]:
        """The text with whole control texts wrapped and breaks removed, and the place in `text` of each character."""
        parts: list[str] = []
        places: list[int] = []
        position = 0
        either = re.compile(f"(?P<token>{self.pattern.pattern})|{re.escape(BREAK)}")
        for match in either.finditer(text):
            parts.append(text[position : match.start()])
            places.extend(range(position, match.start()))
            position = match.end()
            if match["token"] is not None:
                parts.append(_OPEN + match.group() + _CLOSE)
                places.extend([match.start()] * len(parts[-1]))
        parts.append(text[position:])
        places.extend(range(position, len(text) + 1))
        return "".join(parts), np.asarray(places, dtype=np.int64)
