"""The types on the arrows: message, example, batch, scores, loss, and the protocols between rooms.

Shape legend: T tokens, N segments, K scored positions, S sequences, P pairs, G group, V vocabulary, D model, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Record:
    """A raw entry of a source and where it stands; `line` counts physical lines (or rows) from 1."""

    value: dict[str, Any]
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Message:
    """One turn; `weight` is its share in the loss (0: never trained, None: decided by `data.train_on`)."""

    role: Role
    content: str
    tool_calls: tuple[dict[str, Any], ...] = ()
    name: str | None = None
    tool_call_id: str | None = None
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    messages: tuple[Message, ...]
    file: str
    line: int
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    text: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt and its answer as plain text, rendered without a chat template."""

    prompt: str
    completion: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenised sequence; `weights[i]` is the loss weight of predicting `tokens[i]`, so `weights[0]` is 0."""

    tokens: np.ndarray  # int32 (T,)
    weights: np.ndarray  # float32 (T,)
    file: str
    line: int

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Batch:
    """A forest of segments laid end to end; no padding token exists."""

    tokens: Int[Tensor, " T"]
    positions: Int[Tensor, " T"]  # a child continues its parent's positions
    segments: Int[Tensor, "N 3"]  # start, end, parent (-1: none); a parent stands before its children
    query: Int[Tensor, " K"]  # index of the hidden state that predicts ...
    target: Int[Tensor, " K"]  # ... this token
    weight: Float[Tensor, " K"]  # its weight in the loss
    sequence: Int[Tensor, " K"]  # which sequence the scored token belongs to
    streams: dict[str, Float[Tensor, " K"]] = field(default_factory=dict)
    labels: Float[Tensor, " S"] | None = None
    records: tuple[str, ...] = ()  # `file:line` of each sequence, for error messages

    def to(self, device: Any) -> Batch:
        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return Batch(
            tokens=moved(self.tokens),
            positions=moved(self.positions),
            segments=moved(self.segments),
            query=moved(self.query),
            target=moved(self.target),
            weight=moved(self.weight),
            sequence=moved(self.sequence),
            streams={name: moved(stream) for name, stream in self.streams.items()},
            labels=None if self.labels is None else moved(self.labels),
            records=self.records,
        )


@dataclass(frozen=True, slots=True)
class Scores:
    """What the model says of the scored tokens of a batch."""

    logprobs: Float[Tensor, " K"]  # fp32 log-probability of each target
    correct: Float[Tensor, " K"]  # 1 where the target is the most likely token, no gradient


@dataclass(frozen=True, slots=True)
class Loss:
    """A SUM over units; `metrics` are sums as well, divided by the same global count."""

    sum: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


class BatchSource(Protocol):
    """Where batches come from: files (offline) or rollouts (online)."""

    supplies: frozenset[str]  # the streams its batches carry
    step_tokens: int  # tokens of the step handed out last, over all ranks

    def next_step(self) -> list[Batch]:
        """This rank's microbatches of the next optimiser step."""
        ...

    def epoch(self) -> float: ...

    def state(self) -> dict[str, Any]:
        """JSON-able position; `restore(state())` continues with exactly the same batches."""
        ...

    def restore(self, state: dict[str, Any]) -> None: ...

    def fingerprint(self) -> str:
        """Hash of the data and of the settings that order it; a resume refuses another one."""
        ...
