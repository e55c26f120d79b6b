"""KL divergence of whole next-token distributions, without ever holding tokens x vocabulary."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunesmith.models.head import HEAD, pieces, wide

ROWS, COLUMNS = 1024, 4096  # rows, and words of the vocabulary, whose logits are alive at once
CHUNK = 64  # rows whose logits are alive at once where autograd forms the gradient


@HEAD
def divergence(
    rows_KD: Float[Tensor, "K D"],
    head: nn.Module,
    other_KD: Float[Tensor, "K D"],
    other_head: nn.Module,
    softcap: float | None = None,
) -> Float[Tensor, " K"]:
    """KL(p || q) of each row in fp32: p is what `head` makes of `rows`, q what the other head makes of the others.

    Only p has a gradient. Two frozen plain heads form it in the forward pass; others go in chunks through autograd.
    """
    if softcap is None and is_plain(head) and is_plain(other_head):
        return FrozenDivergence.apply(rows_KD, head.weight, other_KD, other_head.weight)
    return general_divergence(rows_KD, head, other_KD, other_head, softcap)


def is_plain(head: nn.Module) -> bool:
    return type(head) is nn.Linear and head.bias is None and not head.weight.requires_grad


def general_divergence(
    rows_KD: Tensor, head: nn.Module, other_KD: Tensor, other_head: nn.Module, softcap: float | None
) -> Float[Tensor, " K"]:
    def spread(module: nn.Module, rows: Tensor) -> Tensor:
        logits = module(rows)
        logits = logits.to(wide(logits))
        return (logits if softcap is None else softcap * torch.tanh(logits / softcap)).log_softmax(1)

    def chunk(rows: Tensor, other: Tensor) -> Tensor:
        own = spread(head, rows)
        with torch.no_grad():
            theirs = spread(other_head, other)
        return (own.exp() * (own - theirs)).sum(1)

    parts = [
        checkpoint(chunk, rows, other, use_reentrant=False)
        for rows, other in zip(rows_KD.split(CHUNK), other_KD.split(CHUNK), strict=True)
    ]
    return torch.cat(parts).float()


class FrozenDivergence(torch.autograd.Function):
    """With d = z - y, the difference of the logits: KL = E_p d - log Z_p + log Z_q, and dKL/dz = p (d - E_p d).

    Sums over p come from one pass over the vocabulary (online softmax, arXiv:1805.02867); the gradient of a row is
    E_p[d W] - E_p d E_p W, which the forward pass forms and the backward pass scales.
    """

    @staticmethod
    def forward(ctx, rows, weight, other, other_weight):  # pyright: ignore[reportIncompatibleMethodOverride]
        found = rows.new_empty(len(rows), dtype=torch.float32)
        slopes = torch.empty_like(rows)
        for block in pieces(len(rows), ROWS):
            found[block], slopes[block] = frozen_block(rows[block], weight, other[block], other_weight)
        ctx.save_for_backward(slopes)
        return found

    @staticmethod
    @HEAD
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        (slopes,) = ctx.saved_tensors
        return slopes * grad[:, None].to(slopes.dtype), None, None, None


def frozen_block(rows: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor) -> tuple[Tensor, Tensor]:
    """The divergence of some rows, and its gradient for them."""
    kind = wide(rows)
    largest, theirs = (rows.new_full((len(rows), 1), -torch.inf, dtype=kind) for _ in range(2))
    sums, their_sums, tilted = (torch.zeros_like(largest) for _ in range(3))
    mean, mean_tilted = (rows.new_zeros(rows.shape, dtype=kind) for _ in range(2))
    for words in pieces(len(weight), COLUMNS):
        z, y = (rows @ weight[words].T).to(kind), (other @ other_weight[words].T).to(kind)
        theirs, their_sums = added(theirs, their_sums, y)
        before, gap = largest, z - y
        largest = torch.maximum(largest, z.amax(1, keepdim=True))
        worth, powers = (before - largest).exp_(), z.sub_(largest).exp_()
        tilt = powers * gap
        sums = sums * worth + powers.sum(1, keepdim=True)
        tilted = tilted * worth + tilt.sum(1, keepdim=True)
        mean.mul_(worth).add_(powers.to(weight.dtype) @ weight[words])
        mean_tilted.mul_(worth).add_(tilt.to(weight.dtype) @ weight[words])
    gap = tilted / sums
    found = gap - (largest + sums.log()) + (theirs + their_sums.log())
    slopes = mean_tilted.div_(sums).sub_(mean.div_(sums).mul_(gap))
    return found[:, 0].float(), slopes.to(rows.dtype)


def added(largest: Tensor, sums: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit so far and the sum of powers below it, with more words."""
    larger = torch.maximum(largest, logits.amax(1, keepdim=True))
    return larger, sums * (largest - larger).exp_() + (logits - larger).exp_().sum(1, keepdim=True)
