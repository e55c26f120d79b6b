"""Examples to batches: best-fit bins, and a forest of segments laid end to end without padding."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tunesmith.types import Batch, Example, Reads


@dataclass(frozen=True, slots=True)
class Node:
    """One segment of a forest; `parent` is the index of an earlier node that it continues (-1: none)."""

    tokens: np.ndarray  # int (T,)
    weights: np.ndarray  # float (T,), loss weight of predicting each token
    parent: int = -1
    sequence: int | None = None  # its own index when empty


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: indices of `lengths` in bins of at most `capacity`; a longer one has a bin of its own.

    Bins and their contents come in ascending order of index, so the result depends on the input alone.
    """
    bins: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (free tokens, bin), ascending
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect.bisect_left(space, (lengths[index], -1))
        if at < len(space):
            free, chosen = space.pop(at)
        else:
            free, chosen = max(capacity, lengths[index]), len(bins)
            bins.append([])
        bins[chosen].append(index)
        bisect.insort(space, (free - lengths[index], chosen))
    return sorted(sorted(contents) for contents in bins)


def batch_of(examples: Sequence[Example], reads: Reads = "logprobs", indices: Sequence[int] = ()) -> Batch:
    """One microbatch; answers of an example hang from its prompt. `indices` are their places in the prepared data."""
    nodes: list[Node] = []
    groups: list[int] = []
    labels: list[float] = []
    for index, example in enumerate(examples):
        added = list(nodes_of(example, len(nodes), len(groups)))
        nodes += added
        answers = sum(node.sequence is not None for node in added)
        groups += [index] * answers
        labels += example.labels or (0.0,) * answers
    records = tuple(f"{example.file}:{example.line}" for example in examples)
    batch = assemble(nodes, records, reads)
    return replace(
        batch,
        group=torch.tensor(groups, dtype=torch.int64),
        labels=torch.tensor(labels, dtype=torch.float32),
        examples=tuple(indices),
        imitated=torch.tensor([float(one) for example in examples for one in example.imitated]),
    )


def nodes_of(example: Example, first: int, sequence: int) -> Iterator[Node]:
    """The segments of one example, which become the nodes from `first` on; answers are sequences from `sequence` on."""
    if not example.cuts:
        yield Node(example.tokens, example.weights, sequence=sequence)
        return
    ends = (*example.cuts[1:], len(example))
    yield Node(example.tokens[: example.cuts[0]], example.weights[: example.cuts[0]])
    for number, (start, end) in enumerate(zip(example.cuts, ends, strict=True)):
        parent = first + number if example.chained else first
        yield Node(example.tokens[start:end], example.weights[start:end], parent, sequence + number)


def assemble(nodes: Sequence[Node], records: tuple[str, ...] = (), reads: Reads = "logprobs") -> Batch:
    """Lay the nodes end to end. Tokens that no loss reads at the end of a leaf are left out of the computation.

    A child's first token is predicted by its parent's last token; a root's first token is never scored.
    """
    parents = {node.parent for node in nodes}
    own = 1 if reads == "values" else 0  # a value is read at the token itself, a prediction at the one before
    ends: list[int] = []
    depths: list[int] = []
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("tokens", "positions", "query", "target", "weight", "sequence")
    }
    segments = []
    start = 0
    for index, node in enumerate(nodes):
        assert node.parent < index, "a parent stands before its children"
        scored = np.flatnonzero(node.weights)
        if node.parent < 0 and not own:
            assert node.weights[0] == 0, "the first token of a sequence has nothing that predicts it"
        keep = len(node.tokens) if index in parents else max(1, int(scored[-1]) + own if len(scored) else 1)
        before = -1 if node.parent < 0 else ends[node.parent] - 1
        depth = 0 if node.parent < 0 else depths[node.parent]
        query = start + scored if own else np.where(scored == 0, before, start + scored - 1)
        columns["tokens"].append(node.tokens[:keep])
        columns["positions"].append(np.arange(depth, depth + keep))
        columns["query"].append(query)
        columns["target"].append(node.tokens[scored])
        columns["weight"].append(node.weights[scored])
        columns["sequence"].append(np.full(len(scored), index if node.sequence is None else node.sequence))
        segments.append((start, start + keep, node.parent))
        start += keep
        ends.append(start)
        depths.append(depth + keep)
    return Batch(
        tokens=joined(columns["tokens"]),
        positions=joined(columns["positions"]),
        segments=torch.tensor(segments, dtype=torch.int64),
        query=joined(columns["query"]),
        target=joined(columns["target"]),
        weight=torch.from_numpy(np.concatenate(columns["weight"]).astype(np.float32)),
        sequence=joined(columns["sequence"]),
        group=torch.arange(len(nodes)),
        labels=torch.zeros(len(nodes)),
        records=records,
    )


def joined(parts: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
