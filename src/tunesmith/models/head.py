"""Log-probabilities of given tokens without ever holding tokens x vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeGuard

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from tunesmith.models.native.kernels import kernels_for
from tunesmith.models.native.product import rows_by_inputs, rows_by_outputs
from tunesmith.models.rounding import ROUND, missing
from tunesmith.models.scratch import scratch
from tunesmith.track.clock import part

HEAD = part("head and loss")
ROWS, COLUMNS = 4096, 4096  # rows, and words of the vocabulary, whose logits are alive at once
CHUNK = 256  # rows whose logits are alive at once where autograd forms the gradient
WHOLE = 2**23  # logits alive at once where whole rows are needed


@HEAD
def token_logprobs(
    rows_KD: Float[Tensor, "K D"], head: nn.Module, target_K: Int[Tensor, " K"], softcap: float | None = None
) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"], Float[Tensor, " K"]]:
    """log p(target), whether the target is the most likely token (1.0 or 0.0, no gradient), and log Z; in fp32.

    Z is what powers of the logits are divided by: log p(y) = z_y - log Z.

    A frozen plain head forms the gradient of its input in the forward pass; a trained one projects again in the
    backward pass; any other head (adapted, biased or soft-capped) is recomputed chunk by chunk through autograd.
    """
    if is_plain(head) and softcap is None:
        function = TrainedHead if head.weight.requires_grad else FrozenHead
        count, extra = len(target_K), missing(len(target_K), target_K)
        rows, target = pad(rows_KD, (0, 0, 0, extra)), pad(target_K, (0, extra))
        logprobs, correct, log_z = function.apply(rows, head.weight, target)
        return logprobs[:count], correct[:count], log_z[:count]
    return general_head(rows_KD, head, target_K, softcap)


def is_plain(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is one product and nothing else."""
    return type(head) is nn.Linear and head.bias is None


def general_head(
    rows_KD: Tensor, head: nn.Module, target_K: Tensor, softcap: float | None
) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"], Float[Tensor, " K"]]:
    def chunk(rows: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = head(rows).float()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        chosen = logits.gather(1, target[:, None])[:, 0]
        correct = (chosen >= logits.amax(1)).float().detach()
        log_z = logits.logsumexp(1)
        return chosen - log_z, correct, log_z

    parts = [
        checkpoint(chunk, rows, target, use_reentrant=False)
        for rows, target in zip(rows_KD.split(CHUNK), target_K.split(CHUNK), strict=True)
    ]
    logprobs, correct, log_z = (torch.cat(part) for part in zip(*parts, strict=True))
    return logprobs, correct, log_z


def whole_logprobs(
    rows_RD: Float[Tensor, "R D"],
    head: nn.Module,
    place_K: Int[Tensor, " K"],
    target_K: Int[Tensor, " K"],
    softcap: float | None = None,
) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    """log p(target) and whether the target is the first of the most likely tokens, without a gradient; in fp32.

    Row `place_K` predicts a target; its logits are formed once and whole, and torch's log_softmax normalises them.
    """
    logprobs, correct = (torch.empty(len(target_K), device=rows_RD.device) for _ in range(2))
    height = max(1, WHOLE // len(head.weight) // ROUND) * ROUND if is_plain(head) else CHUNK
    for block in pieces(len(rows_RD), height):
        here = ((place_K >= block.start) & (place_K < block.stop)).nonzero()[:, 0]
        if len(here) == 0:
            continue
        logits = whole_logits(rows_RD[block], head, softcap)
        chances = torch.log_softmax(logits, -1, out=scratch("whole chances", logits.shape, logits))
        place, target = place_K[here] - block.start, target_K[here]
        logprobs[here] = chances[place, target]
        likeliest = logprobs[here] >= chances.amax(-1)[place]
        likeliest[likeliest.clone()] = chances[place[likeliest]].argmax(-1) == target[likeliest]
        correct[here] = likeliest.float()
    return logprobs, correct


def whole_logits(rows: Float[Tensor, "R D"], head: nn.Module, softcap: float | None) -> Float[Tensor, "R V"]:
    """Logits in fp32, after rounding to the type of the rows; in scratch memory where the head is plain."""
    if is_plain(head):
        logits = scratch("whole", (len(rows), len(head.weight)), rows, torch.float32)
        for words in pieces(len(head.weight), COLUMNS):
            piece = scratch("logits", (len(rows), words.stop - words.start), rows)
            rows_by_outputs(rows, head.weight[words], piece)
            logits[:, words] = piece
    else:
        logits = head(rows).float()
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


class Softmax:
    """log p(target) of rows over a vocabulary that comes piece by piece (online softmax, arXiv:1805.02867).

    Of every row: the largest logit so far, the sum of powers below it, the target's logit; fp32, or fp64 as the rows.
    """

    def __init__(self, rows: Float[Tensor, "K D"], weight: Float[Tensor, "V D"], target: Int[Tensor, " K"]) -> None:
        self.rows, self.weight, self.target = rows, weight, target[:, None]
        self.largest = rows.new_full((len(rows), 1), -torch.inf, dtype=wide(rows))
        self.sums, self.chosen = torch.zeros_like(self.largest), torch.zeros_like(self.largest)

    def add(self, words: slice) -> tuple[Float[Tensor, "K C"], Float[Tensor, "K 1"]]:
        """exp(z - largest) of these words, in scratch memory, and what powers so far are worth under a new largest."""
        logits = scratch("logits", (len(self.rows), words.stop - words.start), self.rows)
        rows_by_outputs(self.rows, self.weight[words], logits)
        here = (self.target >= words.start) & (self.target < words.stop)
        column = (self.target - words.start).clamp_(0, logits.shape[1] - 1)
        self.chosen = torch.where(here, logits.gather(1, column).to(self.chosen.dtype), self.chosen)
        if (kernels := kernels_for(logits)) is not None:
            worth = torch.empty_like(self.largest)
            kernels.powers(logits, self.largest, self.sums, worth)
            return logits, worth
        largest = torch.maximum(self.largest, logits.amax(1, keepdim=True).to(self.largest.dtype))
        worth = (self.largest - largest).exp_()
        powers = logits.sub_(largest.to(logits.dtype)).exp_()
        self.sums.mul_(worth).add_(powers.sum(1, keepdim=True, dtype=self.sums.dtype))
        self.largest = largest
        return powers, worth

    def logprobs(self) -> Float[Tensor, " K"]:
        return (self.chosen - self.largest - self.sums.log())[:, 0]

    def log_z(self) -> Float[Tensor, " K"]:
        return (self.largest + self.sums.log())[:, 0]

    def correct(self) -> Float[Tensor, " K"]:
        """1.0 where no other token is likelier."""
        return (self.chosen >= self.largest)[:, 0].float()


def wide(rows: Tensor) -> torch.dtype:
    return torch.promote_types(rows.dtype, torch.float32)


def pieces(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


class FrozenHead(torch.autograd.Function):
    """d log p(y)/d h = W[y] - softmax(W h) W, formed per row in the forward pass and scaled in the backward pass.

    d log Z/d h = softmax(W h) W is what is missing of W[y].
    """

    @staticmethod
    def forward(ctx, rows, weight, target):  # pyright: ignore[reportIncompatibleMethodOverride]
        logprobs = rows.new_empty(len(rows), dtype=torch.float32)
        correct, log_z = torch.empty_like(logprobs), torch.empty_like(logprobs)
        slopes = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        for block in pieces(len(rows), ROWS):
            softmax = Softmax(rows[block], weight, target[block])
            mean = scratch("mean", rows[block].shape, rows, wide(rows)).zero_()
            moved = scratch("moved", rows[block].shape, rows)
            for words in pieces(len(weight), COLUMNS):
                powers, worth = softmax.add(words)
                if slopes is not None:
                    rows_by_inputs(powers, weight[words], moved)
                    mean.mul_(worth).add_(moved)
            logprobs[block], correct[block] = softmax.logprobs(), softmax.correct()
            log_z[block] = softmax.log_z()
            if slopes is not None:
                slopes[block] = weight[target[block]].to(mean.dtype).sub_(mean.div_(softmax.sums))
        if slopes is not None:
            ctx.save_for_backward(slopes, weight, target)
        ctx.mark_non_differentiable(correct)
        ctx.set_materialize_grads(False)
        return logprobs, correct, log_z

    @staticmethod
    @HEAD
    def backward(ctx, grad_logprobs, _, grad_log_z):  # pyright: ignore[reportIncompatibleMethodOverride]
        slopes, weight, target = ctx.saved_tensors
        if grad_log_z is None:
            return None if grad_logprobs is None else slopes * grad_logprobs[:, None].to(slopes.dtype), None, None
        own = (weight[target] - slopes).mul_(grad_log_z[:, None].to(slopes.dtype))
        if grad_logprobs is not None:
            own.addcmul_(slopes, grad_logprobs[:, None].to(slopes.dtype))
        return own, None, None


class TrainedHead(torch.autograd.Function):
    """The same log-probabilities with a gradient for the head; logits are projected again in the backward pass."""

    @staticmethod
    def forward(ctx, rows, weight, target):  # pyright: ignore[reportIncompatibleMethodOverride]
        logprobs = rows.new_empty(len(rows), dtype=torch.float32)
        correct, log_z = torch.empty_like(logprobs), torch.empty_like(logprobs)
        found = []
        for block in pieces(len(rows), ROWS):
            softmax = Softmax(rows[block], weight, target[block])
            for words in pieces(len(weight), COLUMNS):
                softmax.add(words)
            logprobs[block], correct[block] = softmax.logprobs(), softmax.correct()
            log_z[block] = softmax.log_z()
            found.append((softmax.largest, softmax.sums))
        ctx.found = found
        ctx.save_for_backward(rows, weight, target)
        ctx.mark_non_differentiable(correct)
        return logprobs, correct, log_z

    @staticmethod
    @HEAD
    def backward(ctx, grad_logprobs, _, grad_log_z):  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, weight, target = ctx.saved_tensors
        grad_rows, grad_weight = torch.empty_like(rows), torch.zeros_like(weight)
        for block, (largest, sums) in zip(pieces(len(rows), ROWS), ctx.found, strict=True):
            softmax = Softmax(rows[block], weight, target[block])
            softmax.largest = largest  # it is the largest of all from the start, so every power is final
            own = scratch("mean", rows[block].shape, rows, wide(rows)).zero_()
            moved = scratch("moved", rows[block].shape, rows)
            scale = grad_logprobs[block, None]
            spread = grad_log_z[block, None] - scale  # of the logits by their probabilities
            for words in pieces(len(weight), COLUMNS):
                powers, _ = softmax.add(words)
                slopes = powers.mul_((spread / sums).to(powers.dtype))
                row = ((softmax.target >= words.start) & (softmax.target < words.stop)).nonzero()[:, 0]
                slopes[row, softmax.target[row, 0] - words.start] += scale[row, 0].to(slopes.dtype)
                rows_by_inputs(slopes, weight[words], moved)
                own.add_(moved)
                grad_weight[words].addmm_(slopes.T, rows[block])
            grad_rows[block] = own
        return grad_rows, grad_weight, None
