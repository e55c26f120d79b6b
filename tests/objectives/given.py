"""Examples of every kind of record, batches with all that an objective reads, and a step without a trainer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tests.unit.models.architectures import VOCABULARY, build
from torch import Tensor, nn

from tunesmith.data.packing import Node, assemble, batch_of
from tunesmith.models.forward import hidden_states, score
from tunesmith.objectives import Objective
from tunesmith.types import Batch, Context, Distribution, Example, Kind, Reads, Scores

CLASSES = 3
OTHER_HEAD = nn.Linear(64, VOCABULARY, bias=False).requires_grad_(False)
nn.init.normal_(OTHER_HEAD.weight, std=0.1, generator=torch.Generator().manual_seed(1))
ANSWERS: dict[Kind, tuple[tuple[float, ...], ...]] = {  # labels of the answers of six examples
    "sequence": ((),) * 6,
    "label": ((2.0,), (0.0,), (1.0,), (1.0,), (2.0,), (0.0,)),
    "pair": ((0.0, 0.0), (1.5, 0.0), (0.0, 0.0), (0.5, 0.0), (2.0, 0.0), (0.0, 0.0)),
    "feedback": ((1.0,), (0.0,), (1.0,), (1.0,), (0.0,), (1.0,)),
    "ranking": ((1.0, 0.0), (3.0, 2.0, 2.0), (2.0, 1.0, 0.0), (5.0, 4.0, 4.0, 1.0), (1.0, 0.0), (0.9, 0.1)),
    "process": ((1.0, 0.0), (1.0, 1.0, 0.0), (0.5,), (1.0, 0.0), (0.0,), (1.0, 1.0)),
}


def examples(kind: Kind, reads: Reads = "logprobs", seed: int = 5) -> list[Example]:
    """Six records of the kind, as `prepare` would make them."""
    rng = np.random.default_rng(seed)
    return [
        example(rng, kind, reads, labels, weighted=kind == "sequence", line=line)
        for line, labels in enumerate(ANSWERS[kind], 1)
    ]


def example(
    rng: np.random.Generator, kind: Kind, reads: Reads, labels: tuple[float, ...], weighted: bool, line: int
) -> Example:
    prompt = int(rng.integers(2, 7))
    plain = kind in ("sequence", "label")
    lengths = [int(rng.integers(2, 9)) for _ in range(max(1, len(labels)))]
    tokens = rng.integers(3, VOCABULARY, prompt + sum(lengths)).astype(np.int32)
    weights = np.zeros(len(tokens), dtype=np.float32)
    starts = [prompt + sum(lengths[:i]) for i in range(len(lengths))]
    for start, length in zip(starts, lengths, strict=True):
        if reads == "values":
            weights[start + length - 1] = 1
        else:
            weights[start : start + length] = rng.choice([0.5, 1.0, 2.0], length) if weighted else 1
    cuts = () if plain else tuple(starts)
    return Example(tokens, weights, "given", line, cuts, labels, chained=kind == "process")


def silent(one: Example) -> Example:
    """The same record with nothing scored."""
    return replace(one, weights=np.zeros_like(one.weights))


def given(objective: Objective, kind: Kind | None = None) -> list[Example]:
    return examples(kind or objective.kind, objective.reads)


def batch(objective: Objective, chosen: Sequence[Example], unshared: bool = False) -> Batch:
    """One microbatch with the reference's log-probabilities and, for feedback, mismatched answers."""
    make = separate if unshared else batch_of
    made = with_reference(make(chosen, objective.reads))
    if objective.kind == "feedback":
        everyone = {one.line: one for one in given(objective)}
        others = [mismatched(one, everyone[one.line % len(everyone) + 1]) for one in chosen]
        made = replace(made, mismatched=with_reference(make(others, objective.reads)))
    return made


def with_reference(made: Batch) -> Batch:
    """A made-up reference that depends on the token alone, so that it is the same in every batch."""
    states = torch.cos(made.target[:, None] * torch.arange(1.0, 65.0))
    reference = Distribution(states, OTHER_HEAD)
    return replace(made, streams={"ref_logprobs": -4.1 - (made.target * 7919 % 13).float() / 13}, reference=reference)


def mismatched(prompt: Example, other: Example) -> Example:
    """The prompt of one example with the answer of another."""
    cut, begin = prompt.cuts[0], other.cuts[0]
    tokens = np.concatenate([prompt.tokens[:cut], other.tokens[begin:]])
    weights = np.concatenate([prompt.weights[:cut], other.weights[begin:]])
    return replace(prompt, tokens=tokens, weights=weights)


def separate(chosen: Sequence[Example], reads: Reads = "logprobs") -> Batch:
    """The batch without shared prompts: each answer is a sequence of its own behind a copy of its prompt."""
    forest = batch_of(chosen, reads)
    nodes = list(itertools.chain.from_iterable(unshared_nodes(one) for one in chosen))
    flat = assemble(nodes, forest.records, reads)
    return replace(flat, group=forest.group, labels=forest.labels, imitated=forest.imitated)


def unshared_nodes(one: Example) -> list[Node]:
    if not one.cuts:
        return [Node(one.tokens, one.weights)]
    nodes = []
    for start, end in itertools.pairwise((*one.cuts, len(one))):
        before = one.tokens[: start if one.chained else one.cuts[0]]
        weights = np.concatenate([np.zeros(len(before), dtype=np.float32), one.weights[start:end]])
        nodes.append(Node(np.concatenate([before, one.tokens[start:end]]), weights))
    return nodes


@dataclass
class Stepped:
    """Loss and metrics over the global count, and the gradients of all weights."""

    loss: float
    count: float
    metrics: dict[str, float]
    gradients: list[Tensor]


def read(model: nn.Module, head: nn.Module, objective: Objective, one: Batch) -> Scores:
    if objective.reads == "logprobs":
        return score(model, one)
    values = head(hidden_states(model, one)[one.query]).float()
    return Scores(values.new_zeros(0), values.new_zeros(0), values)


def step(objective: Objective, batches: Sequence[Batch], memory: dict[str, float] | None = None) -> Stepped:
    """What a trainer does in a step, in a few lines: glance, count, forward, backward."""
    model, head = build("llama"), nn.Linear(64, CLASSES)
    count = sum(objective.count(one) for one in batches)
    rows = None
    if objective.looks_ahead:
        with torch.no_grad():
            seen = [one if one.mismatched is None else one.mismatched for one in batches]
            rows = torch.cat([objective.glance(read(model, head, objective, one), one) for one in seen])
    total, sums = 0.0, dict.fromkeys(objective.metric_names, 0.0)
    for one in batches:
        loss = objective(read(model, head, objective, one), one, Context(rows, memory or {}))
        (loss.sum / (count or 1.0)).backward()
        total += loss.sum.item()
        sums = {name: sums[name] + loss.metrics[name].item() for name in objective.metric_names}
    parameters = [*model.parameters(), *head.parameters()]
    gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
    means = {name: value / (count or 1.0) for name, value in sums.items()}
    return Stepped(total / (count or 1.0), count, objective.report(means), gradients)
