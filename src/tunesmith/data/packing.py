"""Examples to batches: best-fit bins, and a forest of segments laid end to end without padding."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tunesmith.types import Batch, Example


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


def batch_of(examples: Sequence[Example]) -> Batch:
    """One microbatch of separate sequences."""
    nodes = [Node(example.tokens, example.weights) for example in examples]
    return assemble(nodes, tuple(f"{example.file}:{example.line}" for example in examples))


def assemble(nodes: Sequence[Node], records: tuple[str, ...] = ()) -> Batch:
    """Lay the nodes end to end. Tokens that no loss reads at the end of a leaf are left out of the computation.

    A child's first token is predicted by its parent's last token; a root's first token is never scored.
    """
    parents = {node.parent for node in nodes}
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
        if node.parent < 0:
            assert node.weights[0] == 0, "the first token of a sequence has nothing that predicts it"
        keep = len(node.tokens) if index in parents else max(1, int(scored[-1]) if len(scored) else 1)
        before = -1 if node.parent < 0 else ends[node.parent] - 1
        depth = 0 if node.parent < 0 else depths[node.parent]
        columns["tokens"].append(node.tokens[:keep])
        columns["positions"].append(np.arange(depth, depth + keep))
        columns["query"].append(np.where(scored == 0, before, start + scored - 1))
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
        records=records,
    )


def joined(parts: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
