"""Weights that hold NaN or Inf, counted tensor by tensor, before anything is computed with them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.errors import ModelError, Where
from tunesmith.models.headers import MAX_NAMED


@torch.no_grad()
def check_finite(tensors: Iterable[tuple[str, Tensor]], place: Path) -> None:
    """ModelError E511 when a number is not finite; about a quarter of a second per gigabyte."""
    lines: list[str] = []
    numbers = 0
    for name, tensor in tensors:
        if not tensor.is_floating_point() or tensor.is_meta or tensor.element_size() == 1:
            continue
        if bool(torch.isfinite(tensor.sum())):  # one pass; a finite sum has finite parts
            continue
        nan, inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        if nan or inf:
            numbers += nan + inf
            lines.append(f"{name}: {nan:,} NaN and {inf:,} Inf of {tensor.numel():,}")
    if lines:
        raise ModelError(
            "E511",
            f"the weights hold {numbers:,} numbers that are NaN or Inf, in {len(lines):,} tensors",
            where=Where(str(place)),
            evidence=lines[:MAX_NAMED],
            fixes=[
                "download the files again and compare their sha256 with the source",
                "if you trained them: use an earlier checkpoint, from before the loss became NaN",
            ],
        )
