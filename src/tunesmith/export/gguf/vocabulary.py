"""The tokenizer of a model folder as GGUF keeps it: tokens with kinds, merges or scores, special ids, chat template."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gguf import GGUFWriter, TokenType

from tunesmith.data.tokenizer import Tokenizer, load_tokenizer
from tunesmith.errors import ModelError, Where
from tunesmith.export.gguf.families import KEEP

GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN = GPT4.replace("{1,3}", "")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
Steps = tuple[tuple[str, str | bool], ...]
SPLITS: Mapping[str, Steps] = {  # what each name of a pre-tokenizer stands for
    "gpt-2": (("bytes", True),),
    "smollm": (("digits", True), ("bytes", True)),
    "llama-bpe": (("split", GPT4), ("bytes", False)),
    "dbrx": (("split", GPT4), ("bytes", False)),
    "qwen2": (("split", QWEN), ("bytes", False)),
    "tekken": (("split", TEKKEN), ("bytes", False)),
}
WHOLE_WORDS = {"llama-bpe": True, "dbrx": False, "tekken": True}  # a word that is a token is not merged up to it
LOWEST = -1e4  # score of tokens that no merge gives
SPACE, SPACES = "▁", {"Regex": " {2,}"}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`model` is gpt2 (merges over bytes), llama (merges by score over characters, with bytes for the rest) or t5.

    In t5 the pieces of the highest sum of scores are taken; `charsmap` replaces characters before.
    """

    model: Literal["gpt2", "llama", "t5"]
    pre: str
    tokens: list[str]
    kinds: list[TokenType]
    special: dict[str, int]
    begins: bool  # with BOS
    ends: bool  # with EOS
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    spaced: bool = False  # a space is put before the text
    joined: bool = False  # several spaces count as one, those at the ends as none
    charsmap: bytes = b""
    template: str | None = None


def read_vocabulary(folder: Path, rows: int) -> Vocabulary:
    """The vocabulary filled up to the model's `rows` with unused tokens.

    ModelError E433 for a tokenizer that has no form in GGUF, E434 for more tokens than the model has rows.
    """
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > rows:
        raise ModelError(
            "E434",
            f"the tokenizer has {tokenizer.vocab_size:,} tokens and the model {rows:,} rows",
            where=Where(str(folder / "tokenizer.json")),
            fixes=["give the folder of the tokenizer that the model was trained with"],
        )
    data = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    model = data["model"]
    if model.get("type") not in ("BPE", "Unigram"):
        raise no_form(folder, f"it is of type {model.get('type')}; BPE over bytes or characters and Unigram have one")
    byte_level = model["type"] == "BPE" and not model.get("byte_fallback")
    tokens, kinds = listed(data, rows, byte_level=byte_level)
    special, ends = special_ids(tokenizer), tokenizer.eos_id is not None and tokenizer.eos_id in tokenizer.end_ids
    begins = tokenizer.bos_id is not None and tokenizer.bos_id in tokenizer.start_ids
    template = template_of(tokenizer)
    if model["type"] == "Unigram":
        charsmap, spaced, joined = unigram_rules(data, folder)
        scores = [score for _, score in model["vocab"]] + [LOWEST] * (rows - len(model["vocab"]))
        return Vocabulary("t5", "default", tokens, kinds, special, begins, ends, scores=scores,
                          spaced=spaced, joined=joined, charsmap=charsmap, template=template)  # fmt: skip
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if model.get("byte_fallback"):
        scores = scores_of(model, tokens)
        spaced = begins_with_space(data)
        return Vocabulary("llama", "default", tokens, kinds, special, begins, ends,
                          scores=scores, spaced=spaced, template=template)  # fmt: skip
    pre = pre_tokenizer(data, folder)
    return Vocabulary("gpt2", pre, tokens, kinds, special, begins, ends, merges=merges, template=template)


def no_form(folder: Path, why: str) -> ModelError:
    message = f"this tokenizer has no form in GGUF: {why}"
    return ModelError("E433", message, where=Where(str(folder / "tokenizer.json")), fixes=[KEEP])


def listed(data: Mapping[str, Any], rows: int, *, byte_level: bool) -> tuple[list[str], list[TokenType]]:
    tokens = [f"[PAD{at}]" for at in range(rows)]
    kinds = [TokenType.UNUSED] * rows
    listing = data["model"]["vocab"]
    places = listing if isinstance(listing, dict) else {token: at for at, (token, _) in enumerate(listing)}
    for token, at in places.items():
        tokens[at], kinds[at] = token, TokenType.NORMAL
        if not byte_level and len(token) == 6 and token.startswith("<0x"):
            kinds[at] = TokenType.BYTE
    for added in data.get("added_tokens") or []:
        at, text = added["id"], added["content"]
        tokens[at] = text if byte_level else text.replace("▁", " ")
        kinds[at] = TokenType.CONTROL if added.get("special") else TokenType.USER_DEFINED
    unknown = places.get(data["model"].get("unk_token"), data["model"].get("unk_id"))
    if not byte_level and unknown is not None:
        kinds[unknown] = TokenType.UNKNOWN
    return tokens, kinds


def scores_of(model: Mapping[str, Any], tokens: Sequence[str]) -> list[float]:
    """Minus the place of the first merge that gives a token: the order of merges told by scores."""
    scores = [LOWEST * len(tokens)] * len(tokens)
    for rank, pair in enumerate(model["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        at = model["vocab"].get(left + right)
        if at is not None:
            scores[at] = max(scores[at], -float(rank))
    return scores


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """`eot` is the first token besides EOS that ends an answer."""
    found = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unk": tokenizer.unk_id, "pad": pad_id(tokenizer)}
    found["eot"] = next((at for at in tokenizer.eos_ids if at != tokenizer.eos_id), None)
    return {name: at for name, at in found.items() if at is not None}


def pad_id(tokenizer: Tokenizer) -> int | None:
    named = tokenizer.named.get("pad_token")
    ids = tokenizer.encode(named, specials=True) if named else []
    return ids[0] if len(ids) == 1 else None


def template_of(tokenizer: Tokenizer) -> str | None:
    """The source of the chat template that is used without tools."""
    return tokenizer.template().text if tokenizer.has_template else None


def steps_of(part: Mapping[str, Any] | None) -> Steps | None:
    """A pre-tokenizer in the words of SPLITS; None for parts that have no word."""
    if part is None:
        return ()
    kind = part["type"]
    if kind == "Sequence":
        steps = [steps_of(each) for each in part["pretokenizers"]]
        return None if None in steps else tuple(step for each in steps if each for step in each)
    if kind == "ByteLevel" and not part.get("add_prefix_space"):
        return (("bytes", bool(part.get("use_regex", True))),)
    if kind == "Digits":
        return (("digits", bool(part.get("individual_digits"))),)
    if kind == "Split" and part["pattern"].get("Regex"):
        return (("split", part["pattern"]["Regex"]),)
    return None


def pre_tokenizer(data: Mapping[str, Any], folder: Path) -> str:
    """The name that readers know the pre-tokenizer by; E433 when they know none."""
    steps = steps_of(data.get("pre_tokenizer"))
    whole = bool(data["model"].get("ignore_merges"))
    for name, known in SPLITS.items():
        if steps == known and WHOLE_WORDS.get(name, whole) == whole:
            return name
    raise no_form(folder, f"its texts are split by none of the rules {', '.join(SPLITS)}")


def begins_with_space(data: Mapping[str, Any]) -> bool:
    written = json.dumps([data.get("normalizer"), data.get("pre_tokenizer")])
    return '"Prepend"' in written or '"prepend_scheme": "first"' in written or '"prepend_scheme": "always"' in written


def unigram_rules(data: Mapping[str, Any], folder: Path) -> tuple[bytes, bool, bool]:
    """The map of characters, whether a space is put in front, whether spaces are joined; E433 for other rules."""
    model = data["model"]
    if model.get("byte_fallback"):
        raise no_form(folder, "Unigram with bytes for unknown characters; readers give the unknown token for those")
    if model.get("unk_id") is None:
        raise no_form(folder, "Unigram without an unknown token")
    charsmap, joined, spaced = b"", False, False
    for part in parts_of(data.get("normalizer"), "normalizers") + parts_of(data.get("pre_tokenizer"), "pretokenizers"):
        kind = part["type"]
        if kind == "Precompiled":
            charsmap = base64.b64decode(part["precompiled_charsmap"] or "")
        elif kind == "WhitespaceSplit" or (kind == "Replace" and part["pattern"] == SPACES and part["content"] == " "):
            joined = True
        elif kind == "Metaspace" and part.get("replacement", SPACE) == SPACE:
            spaced = part.get("prepend_scheme", "always") != "never"
        elif kind != "Strip":
            raise no_form(folder, f"its texts are changed by {kind} before the search for pieces")
    if joined and not spaced:
        raise no_form(folder, "spaces are joined, but none is put before the text")
    return charsmap, spaced, joined


def parts_of(part: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    if part is None:
        return []
    return [each for inner in part[key] for each in parts_of(inner, key)] if part["type"] == "Sequence" else [part]


def write_vocabulary(writer: GGUFWriter, words: Vocabulary) -> None:
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.kinds)
    if words.model != "gpt2":
        writer.add_token_scores(words.scores)
        writer.add_add_space_prefix(words.spaced)
        if words.model == "t5":
            writer.add_remove_extra_whitespaces(words.joined)
        if words.charsmap:
            writer.add_precompiled_charsmap(words.charsmap)
    else:
        writer.add_token_merges(words.merges)
    adders = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
        "eot": writer.add_eot_token_id,
    }
    for name, at in words.special.items():
        adders[name](at)
    writer.add_add_bos_token(words.begins)
    writer.add_add_eos_token(words.ends)
    if words.template is not None:
        writer.add_chat_template(words.template)
