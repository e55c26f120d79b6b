"""The offline batch source: order, mixture, steps and their share for each rank, resumable at every step."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from tunesmith.data.balance import share_out, sizes_of
from tunesmith.data.branches import forest_of
from tunesmith.data.mismatch import Mismatch, spread
from tunesmith.data.mixing import Mixture, interleave, turn
from tunesmith.data.packing import batch_of
from tunesmith.data.prepared import Prepared
from tunesmith.types import Batch, Task

ROUNDING = 1e-9  # 1.1 - 1 is a little more than 0.1
WINDOW = 4096  # neighbours in the files that are packed together where the order is free: bounds memory


class Builder:
    """Batches of prepared examples by their indices, with mismatched prompts where the objective wants them.

    With `share`, tokens that several examples of a microbatch begin with are computed once (see `batch_of`). With a
    mixture, batches tell which of their sequences are of general data.
    """

    def __init__(
        self,
        prepared: Prepared,
        task: Task,
        mismatch: Mismatch | None = None,
        *,
        share: bool = False,
        mixture: Mixture | None = None,
    ) -> None:
        self.prepared = prepared
        self.task = task
        self.mismatch = mismatch
        self.share = share
        self.mixture = mixture
        own = prepared.lengths
        self.room = own if mismatch is None else np.maximum(own, mismatch.lengths)  # tokens to leave for each example

    def __call__(self, indices: Sequence[int]) -> Batch:
        batch = batch_of([self.prepared[index] for index in indices], self.task.reads, indices, share=self.share)
        if self.mixture is not None:
            general = torch.tensor(batch.examples) >= self.prepared.bounds[self.mixture.first]
            batch = replace(batch, general=general.float()[batch.group])
        if self.mismatch is None:
            return batch
        others = [self.mismatch.example(index) for index in batch.examples]
        other = batch_of(others, self.task.reads, batch.examples, share=self.share)
        assert other.examples == batch.examples, "equal prompts stand in equal order"
        return replace(batch, mismatched=other)

    def share_out(self, indices: Sequence[int], capacity: int, ranks: int = 1) -> list[list[list[int]]]:
        """The indices of every microbatch of every rank; what shares tokens stands together where it fits."""
        examples = [self.prepared[index] for index in indices]
        room = [int(self.room[index]) for index in indices]
        forest = forest_of(examples, share=self.share)
        hands = share_out(forest, sizes_of(examples, room), capacity, ranks)
        return [[[indices[place] for place in group] for group in hand] for hand in hands]

    def saved(self, indices: Sequence[int]) -> int:
        """Tokens that a microbatch need not compute because its examples share them."""
        if not self.share:
            return 0
        examples = [self.prepared[index] for index in indices]
        return sum(branch.saved for branch in forest_of(examples))

    def joint(self, indices: Sequence[int]) -> Batch:
        """Every prompt with its own answer (sequences 0, 2, ...) and the mismatched one (1, 3, ...).

        `indices` are those of a batch, in its order, which sharing keeps.
        """
        assert self.mismatch is not None
        joint = [self.mismatch.joint(index) for index in indices]
        return batch_of(joint, self.task.reads, indices, share=self.share)


class Microbatches:
    """The whole set in microbatches, always the same ones, each built when it is asked for."""

    def __init__(self, build: Builder, microbatch_tokens: int) -> None:
        self.build = build
        self.groups: list[list[int]] = []
        total = len(build.prepared)
        for start in range(0, total, WINDOW):
            window = range(start, min(start + WINDOW, total))
            self.groups += build.share_out(window, microbatch_tokens)[0]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Batch:
        return self.build(self.groups[index])


class OfflineSource:
    """Steps over prepared examples; the same seed, data and position give the same batches on every machine.

    A step never crosses an epoch: the last one of an epoch is smaller and has its own denominator. Without a seed the
    examples keep the order of the files. With one, feedback is spread so that every step has its share of good and bad;
    an epoch's rest that is all good or all bad belongs to the step before, as does a rest of one answer in any order.
    """

    supplies: frozenset[str] = frozenset()

    def __init__(
        self,
        build: Builder,
        weights: Sequence[float],
        *,
        sequences_per_step: int | None,
        tokens_per_step: int | None,
        microbatch_tokens: int,
        seed: int | None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.build = build
        self.prepared = build.prepared
        self.weights = tuple(weights)
        self.sequences_per_step = sequences_per_step
        self.tokens_per_step = tokens_per_step
        self.microbatch_tokens = microbatch_tokens
        self.seed = seed or 0
        self.shuffle = seed is not None
        self.rank, self.world = share
        self.mixture = build.mixture
        self.lengths = build.prepared.lengths
        self.number, self.cursor = 0, 0
        self.begun = self.state()  # before the step handed out last
        self.step_tokens, self.step_saved = 0, 0
        self.order = self.epoch_order(0)

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Indices of the examples of one epoch, each source as often as its weight says."""
        parts = []
        for index, weight in enumerate(self.weights[: self.mixture and self.mixture.first]):
            members = np.arange(self.prepared.bounds[index], self.prepared.bounds[index + 1])
            whole, fraction = divmod(weight, 1.0)
            parts += [members] * int(whole)
            if fraction:
                parts.append(rotating_share(members, fraction, epoch, (self.seed, index)))
        order = np.concatenate(parts)
        if self.shuffle:
            np.random.default_rng((self.seed, 1, epoch)).shuffle(order)
            if self.build.task.kind == "feedback":
                order = spread(order, self.prepared.first_labels[order])
        return order if self.mixture is None else interleave(order, self.general_order(self.mixture, len(order), epoch))

    def general_order(self, mixture: Mixture, own: int, epoch: int) -> np.ndarray:
        """The examples of general data that stand beside `own` others in an epoch."""
        numbers = range(mixture.first, len(self.weights))
        sets = [np.arange(self.prepared.bounds[index], self.prepared.bounds[index + 1]) for index in numbers]
        pools = [self.weights[index] * len(members) for index, members in zip(numbers, sets, strict=True)]
        wanted = zip(numbers, sets, mixture.counts(own, pools), strict=True)
        order = np.concatenate([turn(members, count, epoch, (self.seed, index, 2)) for index, members, count in wanted])
        np.random.default_rng((self.seed, 3, epoch)).shuffle(order)
        return order

    def step_end(self, order: np.ndarray, cursor: int) -> int:
        """Where the step from `cursor` ends; feedback leaves nothing behind that is no step of its own."""
        end = self.full_step_end(order, cursor)
        if self.build.task.kind != "feedback" or end >= len(order) or self.full_step_end(order, end) < len(order):
            return end
        rest = self.prepared.first_labels[order[end:]]
        alone = len(rest) == 1 or (self.shuffle and bool((rest == rest[0]).all()))
        return len(order) if alone else end

    def full_step_end(self, order: np.ndarray, cursor: int) -> int:
        """After a number of examples, or as many tokens as fit (at least one)."""
        if self.tokens_per_step is None:
            assert self.sequences_per_step is not None
            return min(cursor + self.sequences_per_step, len(order))
        end, used = cursor, 0
        while end < len(order) and (end == cursor or used + self.lengths[order[end]] <= self.tokens_per_step):
            used += int(self.lengths[order[end]])
            end += 1
        return end

    def steps_in(self, epoch: int) -> int:
        order = self.epoch_order(epoch)
        steps, cursor = 0, 0
        while cursor < len(order):
            cursor = self.step_end(order, cursor)
            steps += 1
        return steps

    def steps_for(self, epochs: float) -> int:
        """Optimiser steps of `epochs` passes; a fraction of an epoch is a fraction of its steps, rounded up."""
        whole = int(epochs)
        steps = sum(self.steps_in(epoch) for epoch in range(whole))
        if epochs > whole:
            steps += math.ceil((epochs - whole) * self.steps_in(whole) - ROUNDING)
        return steps

    def next_step(self) -> list[Batch]:
        """This rank's microbatches; a rank without examples has none and still takes part in the reduction."""
        return [self.build(group) for group in self.next_groups()]

    def next_groups(self) -> list[list[int]]:
        """The examples of each of this rank's microbatches of the next step."""
        self.begun = self.state()
        if self.cursor >= len(self.order):
            self.number, self.cursor = self.number + 1, 0
            self.order = self.epoch_order(self.number)
        end = self.step_end(self.order, self.cursor)
        chosen = self.order[self.cursor : end].tolist()
        self.cursor = end
        self.step_tokens = int(self.lengths[chosen].sum())
        hands = self.build.share_out(chosen, self.microbatch_tokens, self.world)
        self.step_saved = sum(self.build.saved(group) for hand in hands for group in hand)
        return hands[self.rank]

    def epoch(self) -> float:
        return self.number + self.cursor / len(self.order)

    def state(self) -> dict[str, Any]:
        return {"epoch": self.number, "cursor": self.cursor}

    def again(self, microbatch_tokens: int) -> list[Batch]:
        """The step handed out last in smaller microbatches, which later steps have as well."""
        self.restore(self.begun, microbatch_tokens)
        return self.next_step()

    def restore(self, state: dict[str, Any], microbatch_tokens: int = 0) -> None:
        self.number, self.cursor = state["epoch"], state["cursor"]
        self.order = self.epoch_order(self.number)
        self.microbatch_tokens = microbatch_tokens or self.microbatch_tokens

    def fingerprint(self) -> str:
        shaping = [
            self.prepared.key,
            self.weights,
            self.sequences_per_step,
            self.tokens_per_step,
            self.seed,
            self.shuffle,
            None if self.mixture is None else asdict(self.mixture),
        ]
        return hashlib.sha256(json.dumps(shaping).encode()).hexdigest()


def rotating_share(members: np.ndarray, fraction: float, epoch: int, seed: tuple[int, int]) -> np.ndarray:
    """A `fraction` of the members, the next ones each epoch, around a fixed shuffled circle."""
    if not len(members):
        return members
    return turn(members, max(1, round(fraction * len(members))), epoch, (*seed, 2))
