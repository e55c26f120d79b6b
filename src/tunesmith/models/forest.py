"""The shape of a batch as attention sees it: segments, their ancestors, and the masks between them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens [start, end) and the spans of its ancestors, oldest first."""

    start: int
    end: int
    ancestors: tuple[tuple[int, int], ...]

    @property
    def context(self) -> int:
        """Tokens before the segment's first one, along its path."""
        return sum(end - start for start, end in self.ancestors)


@dataclass(slots=True)
class Forest:
    """Segments of one batch; a token attends to its ancestors' segments and to itself and earlier in its own."""

    segments: tuple[Segment, ...]
    biases: dict[tuple[int, int, int | None, torch.dtype], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, segments_N3: Int[Tensor, "N 3"]) -> Forest:
        built: list[Segment] = []
        for start, end, parent in segments_N3.tolist():
            if parent < 0:
                ancestors: tuple[tuple[int, int], ...] = ()
            else:
                above = built[parent]
                ancestors = (*above.ancestors, (above.start, above.end))
            built.append(Segment(start, end, ancestors))
        return cls(tuple(built))

    @property
    def is_flat(self) -> bool:
        """True when every segment is a root: plain packed sequences."""
        return all(not segment.ancestors for segment in self.segments)

    def bias(self, rows: int, context: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask (rows, context + rows): row i sees keys up to context + i, at most `window` of them."""
        key = (rows, context, window, dtype)
        if key not in self.biases:
            query = torch.arange(context, context + rows)[:, None]
            keys = torch.arange(context + rows)[None, :]
            hidden = keys > query
            if window is not None:
                hidden |= keys <= query - window
            self.biases[key] = torch.zeros(rows, context + rows, dtype=dtype).masked_fill_(hidden, float("-inf"))
        return self.biases[key]


def dense_mask(forest: Forest, window: int | None = None) -> Bool[Tensor, "T T"]:
    """True where query row may see key column, over the whole batch; the reference, quadratic in T."""
    total = max(segment.end for segment in forest.segments)
    allowed = torch.zeros(total, total, dtype=torch.bool)
    for segment in forest.segments:
        rows = segment.end - segment.start
        spans = (*segment.ancestors, (segment.start, segment.end))
        columns = torch.cat([torch.arange(start, end) for start, end in spans])
        visible = forest.bias(rows, segment.context, window, torch.float32) == 0
        allowed[segment.start : segment.end, columns] = visible
    return allowed
