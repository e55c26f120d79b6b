"""The tokenizer of a model folder: text to ids and back, its chat template, and its control tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer as Backend

from tunesmith.data.control import BREAK, ControlTokens
from tunesmith.data.template import Ask, Failure, Template, text_of
from tunesmith.errors import DataError, ModelError, Where
from tunesmith.tokenizing import check_growth, decoded, encoded
from tunesmith.types import Message
from tunesmith.vocabulary import extend, read_new_tokens, read_source, read_text

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class Tokens(NamedTuple):
    """Ids of a text; token i covers the characters from `starts[i]` to `ends[i]`."""

    ids: list[int]
    starts: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True, slots=True)
class Shielded:
    """Messages and tools as JSON values in which control texts are broken; `found` is the first of those."""

    messages: list[dict[str, Any]]
    tools: list[Any]
    found: str | None


class Tokenizer:
    """Reads `tokenizer.json` of a local folder; equal to what transformers gives for it, and never runs its code.

    `eos_ids` are all ids that end a generation, `declared_eos_ids` those of the generation config alone, `start_ids`
    what stands before every text without a template (the BOS of Llama or Gemma, nothing for Qwen), `end_ids` what it
    puts after one by itself (the separator of BERT, nothing for most models that generate). `new` tokens are added to
    those of the folder; they are no control tokens, so that a text which holds one means it. `rowless` tokens are left
    out: the model has no row for them.
    """

    def __init__(self, folder: Path, new: Sequence[str] = ()) -> None:
        self.folder = folder
        text, self.rowless = read_source(folder)
        source = extend(text, new)
        self.new_tokens = (*read_new_tokens(folder).tokens, *new)
        self._digest = hashlib.sha256(source.encode()).digest()
        self._file = folder / "tokenizer.json"
        self._backend = _backend(source, self._file)
        settings = _read_json(folder / "tokenizer_config.json")
        self.named = _named_tokens(settings, _read_json(folder / "special_tokens_map.json"))
        self.control = ControlTokens(source, self.named.values(), self._file, self.new_tokens)
        self.vocab_size: int = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1
        self.unk_id = self._id_of("unk_token")
        self.bos_id = self._id_of("bos_token")
        self.eos_id = self._id_of("eos_token")
        self.declared_eos_ids = _declared_eos(folder)
        own = () if self.eos_id is None else (self.eos_id,)
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys((*self.declared_eos_ids, *own)))
        if self.eos_id is None and self.eos_ids:
            self.eos_id = self.eos_ids[0]
        self.start_ids = self._find_start_ids(settings.get("add_bos_token"))
        self.end_ids = self._find_end_ids()
        self._backend.post_processor = None  # type: ignore[assignment]
        self._templates = _templates(folder, settings, self.named)

    def encode(self, text: str, *, specials: bool) -> list[int]:
        """Ids of `text`, without BOS or EOS; with `specials` False its control texts stay plain text."""
        if not specials and self.control.pattern.search(text):
            return self.control.encode(text, specials=False)[0]
        return encoded(self._backend, text, self._file).ids

    def encode_after(self, text: str, prompt_ids: Sequence[int], prompt: str) -> list[int]:
        """Plain ids of a text that follows `prompt`, so that the prompt keeps the ids it has alone."""
        whole = self.encode(prompt + text, specials=False)
        if whole[: len(prompt_ids)] == list(prompt_ids):
            return whole[len(prompt_ids) :]
        line = self.encode("\n", specials=False)  # a line break before it, so that no tokenizer adds a space
        led = self.encode("\n" + text, specials=False)
        return led[len(line) :] if led[: len(line)] == line else self.encode(text, specials=False)

    def encode_rendered(self, text: str) -> Tokens:
        """Ids and character places of a rendered conversation; broken control texts of users stay plain text.

        A gap before a token (a trimmed space) belongs to that token, so the tokens tile the text.
        """
        if BREAK in text:
            ids, offsets = self.control.encode(text, specials=True)
        else:
            encoding = encoded(self._backend, text, self._file)
            ids, offsets = encoding.ids, np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        starts, ends = offsets[:, 0], offsets[:, 1]
        reached = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]]) if len(ends) else ends
        return Tokens(ids, np.minimum(starts, reached), ends)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False, shown: frozenset[int] = frozenset()) -> str:
        """The text of ids; with `skip_special` without tokens that are special in the file, but for those `shown`."""
        found = [int(id) for id in ids]
        if skip_special and shown.intersection(found):
            found = [id for id in found if id in shown or id not in self.control.special_ids]
            skip_special = False
        return decoded(self._backend, found, self._file, skip_special=skip_special)

    def token_text(self, id: int) -> str:
        """One token as text; a part of a character is shown as its bytes."""
        piece = self._backend.id_to_token(int(id))
        if piece is None:
            return f"<{id}?>"
        text = decoded(self._backend, [int(id)], self._file)
        if "\ufffd" in text:
            return piece
        return " " + text if piece.startswith("▁") and not text.startswith(" ") else text

    def render(self, messages: Sequence[Message], tools: Sequence[Any] = (), *, add_generation_prompt: bool) -> str:
        """The conversation as the template writes it; raises DataError when the template refuses it."""
        return self._render(messages, tools, add_generation_prompt).replace(BREAK, "")

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[int]:
        """Ids of the conversation with the text that asks the model to answer."""
        return self.encode_rendered(self._render(messages, tools, True)).ids

    def shield(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> Shielded:
        plain = [to_json(message) for message in messages]
        found = self.control.find(plain) or self.control.find(list(tools))
        if found is None:
            return Shielded(plain, list(tools), None)
        return Shielded(self.control.shield(plain), self.control.shield(list(tools)), found)

    def render_prefixes(self, shielded: Shielded, asks: Sequence[Ask]) -> list[str | Failure]:
        """Several prefixes of a conversation at once; broken control texts are still broken in the result."""
        return self.template(bool(shielded.tools)).render(shielded.messages, shielded.tools, asks)

    def template(self, with_tools: bool = False) -> Template:
        """The chat template; ModelError (E065) when the model has none."""
        if not self._templates:
            raise ModelError(
                "E065",
                "this model has no chat template, so conversations cannot be rendered",
                where=Where(file=str(self.folder)),
                fixes=[
                    "use the chat (instruct) version of the model",
                    "add a chat_template.jinja to the model folder",
                    "use prompt and completion, or plain text: those need no template",
                ],
            )
        name = "tool_use" if with_tools and "tool_use" in self._templates else "default"
        return self._templates.get(name) or next(iter(self._templates.values()))

    def vocabulary(self) -> dict[str, int]:
        """Every token's text and id."""
        return self._backend.get_vocab(with_added_tokens=True)

    def fingerprint(self) -> str:
        """Hash of all that shapes ids: the tokenizer, its named tokens, its stop ids and its templates."""
        texts = {name: template.text for name, template in sorted(self._templates.items())}
        new = [self.new_tokens] if self.new_tokens else []
        parts = json.dumps([self.named, self.eos_ids, self.start_ids, texts, *new], sort_keys=True)
        return hashlib.sha256(self._digest + parts.encode()).hexdigest()

    @property
    def has_template(self) -> bool:
        return bool(self._templates)

    def _render(self, messages: Sequence[Message], tools: Sequence[Any], add_generation_prompt: bool) -> str:
        shielded = self.shield(messages, tools)
        answer = self.render_prefixes(shielded, [Ask(len(messages), add_generation_prompt)])[0]
        return text_of(answer, Where())

    def _id_of(self, name: str) -> int | None:
        text = self.named.get(name)
        return None if text is None else self._backend.token_to_id(text)

    def _find_start_ids(self, add_bos: object) -> tuple[int, ...]:
        if isinstance(add_bos, bool) and self.bos_id is not None:
            return (self.bos_id,) if add_bos else ()
        bare = encoded(self._backend, "a", self._file).ids
        full = encoded(self._backend, "a", self._file, specials=True).ids
        return tuple(full[: full.index(bare[0])]) if bare and bare[0] in full else ()

    def _find_end_ids(self) -> tuple[int, ...]:
        bare = encoded(self._backend, "a", self._file).ids
        full = encoded(self._backend, "a", self._file, specials=True).ids
        return tuple(full[full.index(bare[-1]) + 1 :]) if bare and bare[-1] in full else ()


def load_tokenizer(folder: Path, new: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer of a model folder, with `new` tokens. Raises ModelError (E066, E335 for one that is not new)."""
    return Tokenizer(Path(folder), new)


def to_json(message: Message) -> dict[str, Any]:
    """A message as chat templates expect it; the arguments of tool calls become objects."""
    value: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        value["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    if message.name is not None:
        value["name"] = message.name
    if message.tool_call_id is not None:
        value["tool_call_id"] = message.tool_call_id
    return value


def _tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError as error:
        raise DataError(
            "E073",
            f"the arguments of a tool call are not JSON: {error}",
            evidence=[function["arguments"][:200]],
            fixes=["write the arguments as a JSON object"],
        ) from error
    return {**call, "function": {**function, "arguments": arguments}}


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a settings file, empty when there is no file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ModelError("E066", f"{path.name} is not valid JSON: {error}", where=Where(file=str(path))) from error
    return value if isinstance(value, dict) else {}


def _backend(source: str, file: Path) -> Backend:
    try:
        backend = Backend.from_str(source)
    except Exception as error:  # the library raises no narrower class
        raise ModelError(
            "E066",
            f"tokenizer.json cannot be read: {error}",
            where=Where(file=str(file)),
            fixes=["download the model again"],
        ) from error
    check_growth(backend, file)
    backend.no_truncation()
    backend.no_padding()
    return backend


def _named_tokens(*settings: Mapping[str, Any]) -> dict[str, str]:
    """`eos_token` and its like; the first settings that name one win."""
    named: dict[str, str] = {}
    for values in settings:
        for name in _NAMED:
            value = values.get(name)
            text = value.get("content") if isinstance(value, Mapping) else value
            if isinstance(text, str) and text:
                named.setdefault(name, text)
    return named


def _declared_eos(folder: Path) -> tuple[int, ...]:
    """The ids at which generation stops, as the generation config says, or without one the model's config."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).exists():
            value = _read_json(folder / name).get("eos_token_id")
            listed = value if isinstance(value, list) else [value]
            return tuple(id for id in listed if isinstance(id, int))
    return ()


def _templates(folder: Path, settings: Mapping[str, Any], named: Mapping[str, str]) -> dict[str, Template]:
    path = folder / "chat_template.jinja"
    if path.exists():
        return {"default": Template(read_text(path), named, str(path))}
    found = settings.get("chat_template")
    if isinstance(found, list):
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, Mapping)}
    texts = found if isinstance(found, dict) else {"default": found}
    origin = str(folder / "tokenizer_config.json")
    return {str(name): Template(text, named, origin) for name, text in texts.items() if isinstance(text, str) and text}
