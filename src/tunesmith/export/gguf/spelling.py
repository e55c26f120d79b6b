"""Texts become ids by what a GGUF file says of its tokenizer, as the programs that read such files do it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from tunesmith.export.gguf.vocabulary import SPLITS, WHOLE_WORDS


def encode(fields: Mapping[str, Any], text: str) -> list[int]:
    """Ids of a plain text, without BOS and EOS."""
    if fields["tokenizer.ggml.model"] == "gpt2":
        return byte_encoder(fields).encode(text, add_special_tokens=False).ids
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
