"""The model FLOP of a step, counted from what its batches hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tunesmith.types import Batch


@dataclass(slots=True)
class Amount:
    """What passes over batches compute: tokens, scored places, and pairs of a token and one that it attends to."""

    tokens: int = 0
    scored: int = 0
    pairs: float = 0.0

    def add(self, batch: Batch) -> None:
        """Tokens that several sequences share stand in a batch once, and count once."""
        self.tokens += len(batch.tokens)
        self.scored += len(batch.query)
        before: list[int] = []  # tokens above each segment
        for start, end, parent in batch.segments.tolist():
            above = 0 if parent < 0 else before[parent]
            length = end - start
            self.pairs += length * (above + length / 2)
            before.append(above + length)

    def include(self, other: Amount) -> None:
        """Add what the other one holds."""
        self.tokens += other.tokens
        self.scored += other.scored
        self.pairs += other.pairs

    def clear(self) -> None:
        self.tokens, self.scored, self.pairs = 0, 0, 0.0


def amount_of(batches: Iterable[Batch]) -> Amount:
    amount = Amount()
    for batch in batches:
        amount.add(batch)
    return amount


@dataclass(frozen=True, slots=True)
class Rates:
    """What one kind of pass costs, in FLOP or seconds: per token, more per scored place, more per pair."""

    token: float
    scored: float
    pair: float

    @classmethod
    def of(cls, flops: Callable[[float, float], float]) -> Rates:
        """From a formula for a token's FLOP that is linear in the scored share and the mean length of documents.

        T tokens of one document are T² / 2 pairs.
        """
        token = flops(0.0, 0.0)
        return cls(token, flops(1.0, 0.0) - token, 2 * (flops(0.0, 1.0) - token))

    def total(self, amount: Amount) -> float:
        return self.token * amount.tokens + self.scored * amount.scored + self.pair * amount.pairs


@dataclass(frozen=True, slots=True)
class Work:
    """FLOP of passes with gradient and of those without, and FLOP per second of this rank's fastest product."""

    trained: Rates
    forward: Rates
    peak: float

    def flops(self, trained: Amount, forward: Amount) -> float:
        return self.trained.total(trained) + self.forward.total(forward)
