"""Answers in the shapes of OpenAI's interface, whole and in pieces."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.rollout.orders import Piece, Reason, Said
from tunesmith.serve.tools import CallFinder


@dataclass(slots=True)
class Choice:
    """One answer as it grows."""

    text: list[str] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    made: int = 0
    reason: Reason | None = None

    def add(self, piece: Piece) -> None:
        self.text.append(piece.text)
        self.said += piece.said
        self.made, self.reason = piece.made, piece.reason


class Envelope:
    """What every part of one reply has in common."""

    def __init__(self, kind: str, model: str, prompt_tokens: int, tokenizer: Tokenizer) -> None:
        self.kind, self.model, self.prompt_tokens, self.tokenizer = kind, model, prompt_tokens, tokenizer
        self.id = ("chatcmpl-" if kind.startswith("chat") else "cmpl-") + secrets.token_hex(12)
        self.created = int(time.time())

    def wrap(self, choices: Sequence[Mapping[str, Any]], kind: str | None = None) -> dict[str, Any]:
        about = {"id": self.id, "object": kind or self.kind, "created": self.created, "model": self.model}
        return {**about, "choices": list(choices)}

    def usage(self, made: int) -> dict[str, int]:
        total = self.prompt_tokens + made
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": made, "total_tokens": total}


class ChatReply:
    """`finders` are those of calls of tools, one for each choice; None where none are offered."""

    def __init__(self, envelope: Envelope, finders: list[CallFinder] | None, logprobs: bool) -> None:
        self.envelope, self.finders, self.logprobs = envelope, finders, logprobs
        self.opened: set[int] = set()

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        found = []
        for index, choice in enumerate(choices):
            text, calls = "".join(choice.text), []
            if self.finders is not None:
                finder = self.finders[index]
                text = finder.add(text)
                rest, calls = finder.end()
                text += rest
            message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
            if calls:
                message |= {"content": text.strip() or None, "tool_calls": calls}
            reason = "tool_calls" if calls else choice.reason
            about = {"index": index, "message": message, "finish_reason": reason}
            found.append({**about, "logprobs": self.told(choice.said)})
        made = sum(choice.made for choice in choices)
        return {**self.envelope.wrap(found), "usage": self.envelope.usage(made)}

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """What a piece becomes in a stream; the first of an answer says who speaks."""
        text, calls = piece.text, []
        if self.finders is not None:
            text = self.finders[piece.index].add(text)
            if piece.reason is not None:
                rest, calls = self.finders[piece.index].end()
                text += rest
        deltas: list[dict[str, Any]] = []
        if piece.index not in self.opened:
            self.opened.add(piece.index)
            deltas.append({"role": "assistant", "content": ""})
        if text or (piece.said and self.logprobs):
            deltas.append({"content": text})
        if calls:
            deltas.append({"tool_calls": [{"index": at, **call} for at, call in enumerate(calls)]})
        parts = [{"index": piece.index, "delta": delta, "finish_reason": None, "logprobs": None} for delta in deltas]
        for part in parts:
            if "content" in part["delta"] and "role" not in part["delta"]:
                part["logprobs"] = self.told(piece.said)
        if piece.reason is not None:
            reason = "tool_calls" if calls else piece.reason
            parts.append({"index": piece.index, "delta": {}, "finish_reason": reason, "logprobs": None})
        return [self.envelope.wrap([part], "chat.completion.chunk") for part in parts]

    def told(self, said: Sequence[Said]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        rows = []
        for each in said:
            beside = [self.token(token, logprob) for token, logprob in each.likeliest]
            rows.append({**self.token(each.token, each.logprob or 0.0), "top_logprobs": beside})
        return {"content": rows, "refusal": None}

    def token(self, token: int, logprob: float) -> dict[str, Any]:
        plain = self.envelope.tokenizer.decode([token])
        spelled = None if "\ufffd" in plain else list(plain.encode())
        return {"token": self.envelope.tokenizer.token_text(token), "logprob": logprob, "bytes": spelled}


class CompletionReply:
    def __init__(self, envelope: Envelope, logprobs: bool) -> None:
        self.envelope, self.logprobs = envelope, logprobs
        self.offsets: dict[int, int] = {}

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        found = [
            self.choice(index, "".join(choice.text), choice.said, choice.reason) for index, choice in enumerate(choices)
        ]
        return {**self.envelope.wrap(found), "usage": self.envelope.usage(sum(choice.made for choice in choices))}

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        return [self.envelope.wrap([self.choice(piece.index, piece.text, piece.said, piece.reason)])]

    def choice(self, index: int, text: str, said: Sequence[Said], reason: Reason | None) -> dict[str, Any]:
        return {"index": index, "text": text, "finish_reason": reason, "logprobs": self.told(index, said)}

    def told(self, index: int, said: Sequence[Said]) -> dict[str, Any] | None:
        """Texts of tokens with their log-probabilities, and where each begins in the answer."""
        if not self.logprobs:
            return None
        name = self.envelope.tokenizer.token_text
        texts = [name(each.token) for each in said]
        offsets = []
        for text in texts:
            offsets.append(self.offsets.get(index, 0))
            self.offsets[index] = offsets[-1] + len(text)
        tops = [{name(token): logprob for token, logprob in each.likeliest} for each in said]
        logprobs = [each.logprob for each in said]
        return {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}


Reply = ChatReply | CompletionReply
