"""Answers held to a JSON schema by llguidance, which is installed with `tunesmith[serve]`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.serve.refusals import Refusal

LONGEST = 200  # characters of a library's message


class Grammar:
    """Where an answer stands in a grammar."""

    def __init__(self, matcher: Any) -> None:
        self.matcher = matcher

    def allowed(self, count: int) -> Bool[Tensor, " V"]:
        bits = np.unpackbits(np.frombuffer(self.matcher.compute_bitmask(), np.uint8), bitorder="little")[:count]
        self.check()
        found = torch.from_numpy(bits.astype(bool))
        if len(found) < count:
            found = torch.cat([found, found.new_zeros(count - len(found))])
        if not found.any():
            raise Refusal("E418", "no token of the model continues the answer as its schema wants", fix=SIMPLER)
        return found

    def take(self, token: int) -> bool:
        self.matcher.consume_token(token)
        self.check()
        return self.matcher.is_stopped()

    def check(self) -> None:
        if self.matcher.is_error():
            raise Refusal("E418", f"the schema cannot be kept: {_told(self.matcher.get_error())}", fix=SIMPLER)


def _told(error: str) -> str:
    """What the library says, without what it tells of its own state."""
    said = error.partition("<state>")[0].strip()
    return ENDLESS if said == "NoExtensionBias" else said[:LONGEST] or "the schema cannot be kept"


SIMPLER = "simplify the schema"
ENDLESS = "no answer keeps the schema: it refers to itself without an end, or contradicts itself"
SPACES = {"whitespace_pattern": r"[\x20\x0A]{1,16}"}  # a model must not fill its answer with them


class Grammars:
    """Makes grammars for one model; the library is loaded when the first is asked for."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: frozenset[int], width: int) -> None:
        self.tokenizer, self.stop_ids, self.width = tokenizer, stop_ids, width
        self.made: Any = None

    def for_schema(self, schema: dict[str, Any], field: str) -> Any:
        """A matcher of JSON as the schema says; an answer copies it. Raises Refusal E418."""
        text = json.dumps(schema)
        return self.of(lambda library: library.LLMatcher.grammar_from_json_schema(text, overrides=SPACES), field)

    def for_call(self, text: str) -> Any:
        """A matcher of what `call_grammar` wrote."""
        return self.of(lambda library: library.LLMatcher.grammar_from_lark(text), "tools")

    def of(self, grammar: Any, field: str) -> Any:
        library = load()
        if self.made is None:
            source = (self.tokenizer.folder / "tokenizer.json").read_text(encoding="utf-8")
            ends = sorted(self.stop_ids) or None
            self.made = library.LLTokenizer(source, n_vocab=self.width, eos_token=ends)
        try:
            matcher = library.LLMatcher(self.made, grammar(library), log_level=0)
        except ValueError as error:
            raise Refusal("E418", str(error)[:LONGEST], field=field, fix=SIMPLER) from error
        first = matcher.deep_copy()
        if not first.is_error():
            first.compute_bitmask()  # what no answer keeps shows at its first token
        if first.is_error():
            raise Refusal("E418", _told(first.get_error()), field=field, fix=SIMPLER)
        return matcher


def load() -> Any:
    """The library. Raises Refusal E418 with the command that installs it."""
    try:
        import llguidance
    except ImportError as error:
        raise Refusal(
            "E418",
            "answers to a schema need llguidance, which is not installed",
            field="response_format",
            fix="pip install 'tunesmith[serve]'",
        ) from error
    return llguidance
