"""Texts become ids by what a GGUF file says of its tokenizer, as the programs that read such files do it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from gguf import TokenType
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from tunesmith.export.gguf.vocabulary import SPLITS, WHOLE_WORDS

UNKNOWN_COST = 10.0  # below the score of the worst piece


def encode(fields: Mapping[str, Any], text: str) -> list[int]:
    """Ids of a plain text, without BOS and EOS."""
    if fields["tokenizer.ggml.model"] == "gpt2":
        return byte_encoder(fields).encode(text, add_special_tokens=False).ids
    if fields["tokenizer.ggml.model"] == "t5":
        return encode_by_sum(fields, text)
    return encode_by_score(fields, text)


def byte_encoder(fields: Mapping[str, Any]) -> Tokenizer:
    pre = fields["tokenizer.ggml.pre"]
    vocabulary = {token: at for at, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [(left, right) for left, right in (pair.split(" ") for pair in fields["tokenizer.ggml.merges"])]
    whole = WHOLE_WORDS.get(pre, False)
    core = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole))
    core.pre_tokenizer = pre_tokenizers.Sequence([step_of(kind, what) for kind, what in SPLITS[pre]])  # pyright: ignore[reportAttributeAccessIssue]
    return core


def step_of(kind: str, what: str | bool) -> pre_tokenizers.PreTokenizer:
    if kind == "split":
        return pre_tokenizers.Split(Regex(str(what)), "isolated")
    if kind == "digits":
        return pre_tokenizers.Digits(individual_digits=bool(what))
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=bool(what))


def encode_by_score(fields: Mapping[str, Any], text: str) -> list[int]:
    """Neighbours are joined, the pair of the highest score first and the leftmost of equal ones; bytes for the rest."""
    scores = fields["tokenizer.ggml.scores"]
    known = {token: at for at, token in enumerate(fields["tokenizer.ggml.tokens"])}
    led = f" {text}" if fields.get("tokenizer.ggml.add_space_prefix", True) and text else text
    pieces = list(led.replace(" ", "▁"))
    while True:
        joined = [a + b for a, b in pairwise(pieces)]
        pairs = [(scores[known[text]], -at) for at, text in enumerate(joined) if text in known]
        if not pairs:
            break
        at = -max(pairs)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    ids: list[int] = []
    for piece in pieces:
        at = known.get(piece)
        ids += [known[f"<0x{byte:02X}>"] for byte in piece.encode()] if at is None else [at]
    return ids


def encode_by_sum(fields: Mapping[str, Any], text: str) -> list[int]:
    """The pieces of the highest sum of scores; the unknown token, once, for characters that no piece holds."""
    scores, unknown = fields["tokenizer.ggml.scores"], fields["tokenizer.ggml.unknown_token_id"]
    usable = (TokenType.NORMAL, TokenType.USER_DEFINED)
    kinds = fields["tokenizer.ggml.token_type"]
    known = {token: at for at, token in enumerate(fields["tokenizer.ggml.tokens"]) if kinds[at] in usable}
    worst = min(scores[at] for at in known.values()) - UNKNOWN_COST
    led = spaced_text(fields, text)
    longest = max(map(len, known))
    best: list[tuple[float, int, int]] = [(0.0, 0, -1)]  # sum up to each place, where its last piece begins, its id
    for end in range(1, len(led) + 1):
        ways = [(best[end - 1][0] + worst, end - 1, unknown)]
        for begin in range(max(0, end - longest), end):
            at = known.get(led[begin:end])
            if at is not None:
                ways.append((best[begin][0] + scores[at], begin, at))
        best.append(max(ways))
    ids: list[int] = []
    end = len(led)
    while end:
        _, end, at = best[end]
        if at != unknown or ids[-1:] != [unknown]:
            ids.append(at)
    return ids[::-1]


def spaced_text(fields: Mapping[str, Any], text: str) -> str:
    """Characters replaced by the map, spaces as the file says."""
    charsmap = fields.get("tokenizer.ggml.precompiled_charsmap")
    if charsmap is not None:
        text = normalizers.Precompiled(bytes(charsmap)).normalize_str(text)
    if fields["tokenizer.ggml.remove_extra_whitespaces"]:
        return "".join(f"▁{word}" for word in text.split(" ") if word)
    lead = "▁" if fields["tokenizer.ggml.add_space_prefix"] and text else ""
    return lead + text.replace(" ", "▁")
