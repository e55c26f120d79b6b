"""What a batch needs beside its tokens: log-probabilities of the reference, computed once per example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from tunesmith.models.reference import Reference, StartWeights
from tunesmith.objectives.logratios import REFERENCE
from tunesmith.train.stream_cache import StreamCache
from tunesmith.types import Batch


@dataclass(frozen=True, slots=True)
class Streams:
    """Attaches the streams of a data set to its batches; without a reference nothing is attached."""

    reference: Reference | None = None
    cache: StreamCache | None = None  # of the examples
    mismatched: StreamCache | None = None  # of the same prompts with answers to other prompts
    equals_start: bool = False  # whether the reference is exactly the model as the run began
    update_every: int = 0  # steps after which a moving reference follows the policy; 0: never
    update_mix: float = 1.0

    def attach(self, batch: Batch) -> Batch:
        """The batch and its mismatched prompts with `ref_logprobs`."""
        if self.reference is None:
            return batch
        other = batch.mismatched
        if other is not None:
            other = with_reference(other, self.reference, self.mismatched)
        return replace(with_reference(batch, self.reference, self.cache), mismatched=other)

    def after_step(self, step: int) -> None:
        """Let a moving reference follow the policy; nothing of it is ever cached."""
        if self.update_every and step % self.update_every == 0:
            self.moving().follow(self.update_mix)

    @property
    def place(self) -> str:
        """Where cached figures lie."""
        return "nowhere" if self.cache is None else str(self.cache.folder)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: the weights of a moving reference."""
        return dict(self.moving().start) if self.update_every else {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.moving().restore(tensors)

    def moving(self) -> StartWeights:
        assert isinstance(self.reference, StartWeights)
        return self.reference


def with_reference(batch: Batch, reference: Reference, cache: StreamCache | None) -> Batch:
    values = None if cache is None else cache.collect(batch.examples)
    if values is None:
        values = reference.logprobs(batch)
        if cache is not None:
            cache.keep(batch.examples, values)
            values = cache.collect(batch.examples)
            assert values is not None
    return replace(batch, streams={**batch.streams, REFERENCE: values.to(batch.tokens.device)})
