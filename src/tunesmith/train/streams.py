"""What a batch has beside its tokens: log-probabilities of the reference, and states of frozen layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from tunesmith.models.reference import Distributions, Reference, StartWeights
from tunesmith.objectives.logratios import REFERENCE
from tunesmith.track.clock import phase
from tunesmith.train.stream_cache import StreamCache
from tunesmith.train.trunk import Trunk
from tunesmith.train.work import Amount
from tunesmith.types import Batch


@dataclass(frozen=True, slots=True)
class Streams:
    """Attaches to batches of a data set what was computed once per example: log-probabilities of the reference, states.

    Without a reference and a trunk nothing is attached.
    """

    reference: Reference | None = None
    cache: StreamCache | None = None  # of the examples
    mismatched: StreamCache | None = None  # of the same prompts with answers to other prompts
    joint: Callable[[Sequence[int]], Batch] | None = None  # examples as prompts with both of these answers, in turns
    equals_start: bool = False  # whether the reference is exactly the model as the run began
    update_every: int = 0  # steps after which a moving reference follows the policy; 0: never
    update_mix: float = 1.0
    amount: Amount = field(default_factory=Amount)  # what the reference computed since somebody last took it
    trunk: Trunk | None = None
    distributions: Distributions | None = None

    def attach(self, batch: Batch) -> Batch:
        """The batch and its mismatched prompts with `ref_logprobs`; the trained pass begins above the trunk.

        The reference computes from the tokens: its figures are the same with a trunk and without.
        """
        judged = self.judge(batch)
        if self.distributions is not None:
            self.amount.add(batch)
            judged = replace(judged, reference=self.distributions.distribution(batch))
        return judged if self.trunk is None else self.trunk.attach(judged)

    def judge(self, batch: Batch) -> Batch:
        if self.reference is None:
            return batch
        if batch.mismatched is None:
            found = collected(self.cache, batch)
            return with_figures(batch, kept(self.cache, batch, self.computed(batch)) if found is None else found)
        return self.attach_both(batch, batch.mismatched)

    def attach_both(self, batch: Batch, other: Batch) -> Batch:
        """As `attach`, each prompt computed once for both answers.

        Both are computed whichever is missing: a figure never depends, in its last bits, on what was cached before.
        """
        own, others = collected(self.cache, batch), collected(self.mismatched, other)
        if own is None or others is None:
            assert self.joint is not None, "mismatched prompts come with their joint batch"
            joint = self.joint(batch.examples).to(batch.tokens.device)
            values, first = self.computed(joint), joint.sequence % 2 == 0
            own, others = kept(self.cache, batch, values[first]), kept(self.mismatched, other, values[~first])
        return replace(with_figures(batch, own), mismatched=with_figures(other, others))

    @phase("reference")
    def computed(self, batch: Batch) -> Float[Tensor, " K"]:
        assert self.reference is not None
        self.amount.add(batch)
        return self.reference.logprobs(batch)

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


def collected(cache: StreamCache | None, batch: Batch) -> Float[Tensor, " K"] | None:
    """The cached figures of a batch; None when one is missing."""
    return None if cache is None else cache.collect(batch.examples)


def kept(cache: StreamCache | None, batch: Batch, values_K: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """Newly computed figures, in the cache if there is one; those that were there already win."""
    if cache is None:
        return values_K
    cache.keep(batch.examples, values_K)
    found = cache.collect(batch.examples)
    assert found is not None
    return found


def with_figures(batch: Batch, values_K: Float[Tensor, " K"]) -> Batch:
    return replace(batch, streams={**batch.streams, REFERENCE: values_K.to(batch.tokens.device)})
