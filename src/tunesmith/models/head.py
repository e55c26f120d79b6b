"""Log-probabilities of given tokens without ever holding tokens x vocabulary."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from tunesmith.models.native.kernels import kernels_for
from tunesmith.models.rounding import missing
from tunesmith.models.scratch import scratch
from tunesmith.track.clock import part

HEAD = part("head and loss")
CHUNK = 256  # rows of the vocabulary projection alive at once


@HEAD
def token_logprobs(
    rows_KD: Float[Tensor, "K D"], head: nn.Module, target_K: Int[Tensor, " K"], softcap: float | None = None
) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    """log p(target) in fp32 and whether the target is the most likely token (1.0 or 0.0, no gradient).

    A frozen plain head forms the gradient of its input in the forward pass; a trained one projects again in the
    backward pass; any other head (adapted, biased or soft-capped) is recomputed chunk by chunk through autograd.
    """
    if type(head) is nn.Linear and head.bias is None and softcap is None:
        function = TrainedHead if head.weight.requires_grad else FrozenHead
        count, extra = len(target_K), missing(len(target_K), target_K)
        rows, target = pad(rows_KD, (0, 0, 0, extra)), pad(target_K, (0, extra))
        logprobs, correct = function.apply(rows, head.weight, target)
        return logprobs[:count], correct[:count]
    return general_head(rows_KD, head, target_K, softcap)


def general_head(
    rows_KD: Tensor, head: nn.Module, target_K: Tensor, softcap: float | None
) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    def chunk(rows: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(rows).float()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        chosen = logits.gather(1, target[:, None])[:, 0]
        correct = (chosen >= logits.amax(1)).float().detach()
        return chosen - logits.logsumexp(1), correct

    parts = [
        checkpoint(chunk, rows, target, use_reentrant=False)
        for rows, target in zip(rows_KD.split(CHUNK), target_K.split(CHUNK), strict=True)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def softmax_parts(rows: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """exp(z - max) in the computing type, its fp32 row sums, log p(target), and whether the target is the maximum.

    The powers are in scratch memory.
    """
    logits = scratch("logits", (len(rows), len(weight)), rows)
    torch.mm(rows, weight.T, out=logits)
    chosen = logits.gather(1, target[:, None]).float()
    if (kernels := kernels_for(logits)) is not None:
        largest, sums = (logits.new_empty(len(logits), 1, dtype=torch.float32) for _ in range(2))
        kernels.powers(logits, largest, sums)
        return logits, sums, (chosen - largest - sums.log())[:, 0], (chosen >= largest)[:, 0].float()
    largest = logits.amax(1, keepdim=True)
    powers = logits.sub_(largest).exp_()
    sums = powers.sum(1, keepdim=True, dtype=torch.float32)
    largest = largest.float()
    logprobs = (chosen - largest - sums.log())[:, 0]
    return powers, sums, logprobs, (chosen >= largest)[:, 0].float()


class FrozenHead(torch.autograd.Function):
    """d log p(y)/d h = W[y] - softmax(W h) W, formed per row in the forward pass and scaled in the backward pass."""

    @staticmethod
    def forward(ctx, rows, weight, target):  # pyright: ignore[reportIncompatibleMethodOverride]
        logprobs = rows.new_empty(len(rows), dtype=torch.float32)
        correct = torch.empty_like(logprobs)
        wants_gradient = ctx.needs_input_grad[0]
        slopes = torch.empty_like(rows) if wants_gradient else None
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            powers, sums, logprobs[part], correct[part] = softmax_parts(rows[part], weight, target[part])
            if slopes is not None:
                mean = (powers @ weight).float() / sums
                slopes[part] = weight[target[part]].float().sub_(mean).to(rows.dtype)
        if slopes is not None:
            ctx.save_for_backward(slopes)
        ctx.mark_non_differentiable(correct)
        return logprobs, correct

    @staticmethod
    @HEAD
    def backward(ctx, grad_logprobs, _):  # pyright: ignore[reportIncompatibleMethodOverride]
        (slopes,) = ctx.saved_tensors
        return slopes * grad_logprobs[:, None].to(slopes.dtype), None, None


class TrainedHead(torch.autograd.Function):
    """The same log-probabilities with a gradient for the head; logits are projected again in the backward pass."""

    @staticmethod
    def forward(ctx, rows, weight, target):  # pyright: ignore[reportIncompatibleMethodOverride]
        logprobs = rows.new_empty(len(rows), dtype=torch.float32)
        correct = torch.empty_like(logprobs)
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            _, _, logprobs[part], correct[part] = softmax_parts(rows[part], weight, target[part])
        ctx.save_for_backward(rows, weight, target)
        ctx.mark_non_differentiable(correct)
        return logprobs, correct

    @staticmethod
    @HEAD
    def backward(ctx, grad_logprobs, _):  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, weight, target = ctx.saved_tensors
        grad_rows = torch.empty_like(rows)
        grad_weight = torch.zeros_like(weight)
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            powers, sums, _, _ = softmax_parts(rows[part], weight, target[part])
            scale = grad_logprobs[part, None]
            grad_logits = powers.mul_((-scale / sums).to(powers.dtype))
            grad_logits.scatter_add_(1, target[part, None], scale.to(powers.dtype))
            grad_rows[part] = grad_logits @ weight
            grad_weight.addmm_(grad_logits.T, rows[part])
        return grad_rows, grad_weight, None
