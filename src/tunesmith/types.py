"""The types on the arrows: message, example, batch, scores, loss, and the protocols between rooms.

Shape legend: T tokens, N segments, K scored positions, S sequences, P pairs, G group, V vocabulary, D model, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

Role = Literal["system", "user", "assistant", "tool"]
Kind = Literal["sequence", "pair", "feedback", "ranking", "label", "process"]  # what a record is to an objective
Reads = Literal["logprobs", "values"]  # what an objective reads of the model


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


Turns = tuple[Message, ...] | str  # turns of a chat, or plain text that is rendered without a template


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt, the first preferred; `margin` is by how much, where the record says it."""

    prompt: Turns
    chosen: Turns
    rejected: Turns
    file: str
    line: int
    tools: tuple[dict[str, Any], ...] = ()
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Feedback:
    """One answer and whether it was found good."""

    prompt: Turns
    answer: Turns
    good: bool
    file: str
    line: int
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Ranking:
    """Two or more answers to one prompt, best first; `scores` are their ratings (equal ones are ties)."""

    prompt: Turns
    answers: tuple[Turns, ...]
    file: str
    line: int
    tools: tuple[dict[str, Any], ...] = ()
    scores: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text or a chat with its class (a name) or its value (a number)."""

    text: Turns
    label: str | float
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Process:
    """An answer in steps, each judged: 1 right, 0 wrong, or a share between."""

    prompt: Turns
    steps: tuple[str, ...]
    labels: tuple[float, ...]
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Task:
    """What the records are to the objective and what it reads of the model; decides how they are tokenised."""

    kind: Kind = "sequence"
    reads: Reads = "logprobs"
    classes: tuple[str, ...] = ()  # names of the classes, of kind `label`; empty: the label is a number
    mismatches: bool = False  # whether prompts are joined with answers to other prompts

    @property
    def outputs(self) -> int:
        """How many values a model must give where it is read; 0 means the log-probabilities of a language model."""
        return 0 if self.reads == "logprobs" else max(1, len(self.classes))


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenised record: a plain sequence, or a prompt and the answers that each continue it.

    `weights[i]` is the loss weight of predicting `tokens[i]` (so `weights[0]` is 0), or with Task.reads == "values" of
    the value read at `tokens[i]`. `cuts` are the places where the answers begin: `cuts == (p, q)` is the prompt
    `[0, p)` with the answers `[p, q)` and `[q, T)`; empty for a plain sequence.
    """

    tokens: np.ndarray  # int32 (T,)
    weights: np.ndarray  # float32 (T,)
    file: str
    line: int
    cuts: tuple[int, ...] = ()
    labels: tuple[float, ...] = ()  # one per answer: rating, class, or good (1) and bad (0)
    chained: bool = False  # each answer continues the one before it, as the steps of a process do
    stems: tuple[int, ...] = ()  # of each answer the earlier one that it continues, -1: the prompt; empty: all that

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def imitated(self) -> tuple[bool, ...]:
        """Which sequences a likelihood loss learns to say: a plain one, the best of several answers, a good answer."""
        if not self.cuts or self.chained:
            return (True,) * max(1, len(self.cuts))
        if len(self.cuts) == 1:
            return (self.labels != (0.0,),)
        return (True, *(False for _ in self.cuts[1:]))


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a forward pass may begin: above the `layer` lowest decoder layers, whose states were computed before."""

    layer: int
    load: Callable[[], Tensor]  # (T, D), in the type in which they were computed


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a reference says of every next token: its states at the scored places, and the head that reads them."""

    rows: Float[Tensor, "K D"]
    head: nn.Module


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
    group: Int[Tensor, " S"]  # which example each sequence belongs to, counted from 0; the best answer stands first
    labels: Float[Tensor, " S"]  # what the records say of each sequence; 0 where they say nothing
    streams: dict[str, Float[Tensor, " K"]] = field(default_factory=dict)
    records: tuple[str, ...] = ()  # `file:line` of each example, for error messages
    examples: tuple[int, ...] = ()  # index of each example in the prepared data
    imitated: Float[Tensor, " S"] | None = None  # 1 where a likelihood loss learns to say it; None: everywhere
    mismatched: Batch | None = None  # the prompts with answers to other prompts (KTO's z0), never trained
    origins: Int[Tensor, "N 2"] | None = None  # of each segment: its example, counted from 0, and that one's token
    entry: Entry | None = None  # None: from the tokens
    reference: Distribution | None = None
    general: Float[Tensor, " S"] | None = None  # 1 where a sequence is of general data; None: no mixture

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
            group=moved(self.group),
            labels=moved(self.labels),
            streams={name: moved(stream) for name, stream in self.streams.items()},
            records=self.records,
            examples=self.examples,
            imitated=None if self.imitated is None else moved(self.imitated),
            mismatched=None if self.mismatched is None else self.mismatched.to(device),
            origins=self.origins,
            entry=self.entry,
            reference=self.reference,
            general=None if self.general is None else moved(self.general),
        )


@dataclass(frozen=True, slots=True)
class Scores:
    """What the model says of the scored tokens of a batch."""

    logprobs: Float[Tensor, " K"]  # fp32 log-probability of each target; empty when values were read
    correct: Float[Tensor, " K"]  # 1 where the target is the most likely token, no gradient
    values: Float[Tensor, "K C"] | None = None  # fp32 outputs of a reward or classification head
    divergence: Float[Tensor, " K"] | None = None  # fp32 KL of the next token from the batch's reference, if it has one
    log_z: Float[Tensor, " K"] | None = None  # fp32 log of what the powers of the logits are divided by


@dataclass(frozen=True, slots=True)
class Loss:
    """A SUM over units; `metrics` are sums as well, divided by the same global count."""

    sum: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Context:
    """What a loss may know beyond its microbatch; all of it is without gradient."""

    rows: Float[Tensor, "R C"] | None = None  # Objective.glance of every microbatch and rank of the step
    memory: Mapping[str, float] = field(default_factory=dict)  # what Objective.remember kept of earlier steps


class BatchSource(Protocol):
    """Where batches come from: files (offline) or rollouts (online)."""

    supplies: frozenset[str]  # the streams its batches carry
    step_tokens: int  # tokens of the step handed out last, over all ranks
    step_saved: int  # of these, tokens that need no computation of their own because examples share them

    def next_step(self) -> list[Batch]:
        """This rank's microbatches of the next optimiser step."""
        ...

    def epoch(self) -> float: ...

    def state(self) -> dict[str, Any]:
        """JSON-able position; `restore(state())` continues with exactly the same batches."""
        ...

    def restore(self, state: dict[str, Any], microbatch_tokens: int = 0) -> None:
        """Go on from there; in microbatches of at most so many tokens, unless it is 0."""
        ...

    def again(self, microbatch_tokens: int) -> list[Batch]:
        """This rank's share of the step handed out last, in smaller microbatches; later steps have such as well."""
        ...

    def fingerprint(self) -> str:
        """Hash of the data and of the settings that order it; a resume refuses another one."""
        ...
