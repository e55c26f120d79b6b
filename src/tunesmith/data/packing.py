"""Examples to batches: best-fit bins, and a forest of segments laid end to end without padding."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from tunesmith.data.branches import SHORTEST, Branch, forest_of
from tunesmith.types import Batch, Example, Reads


@dataclass(frozen=True, slots=True)
class Node:
    """One segment of a forest; `parent` is the index of an earlier node that it continues (-1: none)."""

    tokens: np.ndarray  # int (T,)
    weights: np.ndarray  # float (T,), loss weight of predicting each token
    parent: int = -1
    sequence: int | None = None  # its own index when empty
    example: int = 0  # whose tokens these are, by its place among those that are packed
    begin: int = 0  # which of that example's tokens stands first


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


def batch_of(
    examples: Sequence[Example],
    reads: Reads = "logprobs",
    indices: Sequence[int] = (),
    *,
    share: bool = False,
    shortest: int = SHORTEST,
) -> Batch:
    """One microbatch; answers of an example hang from its prompt. `indices` are their places in the prepared data.

    With `share`, examples that begin alike, for `shortest` tokens or more, hang from what they share, and stand in the
    order of that forest. Only a model in which no token sees a later one may share, and only where no chance is drawn
    per token.
    """
    forest = forest_of(examples, share=share, shortest=shortest)
    nodes: list[Node] = []
    order: list[int] = []
    groups: list[int] = []
    labels: list[float] = []
    for branch, parent in planted(forest, examples, nodes):
        example = examples[branch.members[0]]
        added = list(nodes_of(example, len(nodes), len(groups), branch.above, parent))
        nodes += [replace(node, example=branch.members[0]) for node in added]
        answers = sum(node.sequence is not None for node in added)
        groups += [len(order)] * answers
        labels += example.labels or (0.0,) * answers
        order += branch.members
    ordered = [examples[place] for place in order]
    batch = assemble(nodes, tuple(f"{example.file}:{example.line}" for example in ordered), reads)
    placed = {place: number for number, place in enumerate(order)}
    return replace(
        batch,
        origins=torch.tensor([(placed[node.example], node.begin) for node in nodes], dtype=torch.int64),
        group=torch.tensor(groups, dtype=torch.int64),
        labels=torch.tensor(labels, dtype=torch.float32),
        examples=tuple(indices[place] for place in order) if indices else (),
        imitated=torch.tensor([float(one) for example in ordered for one in example.imitated]),
    )


def planted(forest: Sequence[Branch], examples: Sequence[Example], nodes: list[Node]) -> Iterator[tuple[Branch, int]]:
    """The leaves in order, each with the node it hangs from; what several examples share is added to `nodes` before."""
    waiting = [(branch, -1) for branch in reversed(forest)]
    while waiting:
        branch, parent = waiting.pop()
        if not branch.children:
            yield branch, parent
            continue
        tokens = examples[branch.members[0]].tokens[branch.above : branch.end]
        weights = np.zeros(len(tokens), dtype=np.float32)
        nodes.append(Node(tokens, weights, parent, None, branch.members[0], branch.above))
        waiting += [(child, len(nodes) - 1) for child in reversed(branch.children)]


def nodes_of(example: Example, first: int, sequence: int, above: int = 0, parent: int = -1) -> Iterator[Node]:
    """The segments of one example, which become the nodes from `first` on; answers are sequences from `sequence` on.

    Its first `above` tokens stand in node `parent` and the ones that node continues.
    """
    tokens, weights = example.tokens, example.weights
    if not example.cuts:
        yield Node(tokens[above:], weights[above:], parent, sequence, begin=above)
        return
    prompt, number = example.cuts[0], first
    if above < prompt:
        yield Node(tokens[above:prompt], weights[above:prompt], parent, begin=above)
        parent, number = first, first + 1
    answers = len(example.cuts)
    stems = example.stems or (range(-1, answers - 1) if example.chained else (-1,) * answers)
    for at, (start, end) in enumerate(pairwise((*example.cuts, len(example)))):
        stem = parent if stems[at] < 0 else number + stems[at]
        yield Node(tokens[start:end], weights[start:end], stem, sequence + at, begin=start)


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


def without_unread(batch: Batch) -> Batch:
    """The batch without leaves that predict nothing: an answer of one token is read where its prompt ends."""
    starts, ends, parents = batch.segments.unbind(1)
    queries = torch.zeros(len(batch.tokens) + 1, dtype=torch.int64)
    queries[1:] = torch.bincount(batch.query, minlength=len(batch.tokens)).cumsum(0)
    kept = queries[ends] > queries[starts]
    kept[parents[parents >= 0]] = True
    if kept.all():
        return batch
    tokens = kept.repeat_interleave(ends - starts)
    place = tokens.cumsum(0) - 1
    number = torch.cat([kept.cumsum(0) - 1, torch.tensor([-1])])  # of the parent -1 as well
    left = torch.stack([place[starts], place[ends - 1] + 1, number[parents]], 1)[kept]
    return replace(
        batch,
        tokens=batch.tokens[tokens],
        positions=batch.positions[tokens],
        segments=left,
        query=place[batch.query],
        origins=None if batch.origins is None else batch.origins[kept],
    )


def joined(parts: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
