"""What stands between the matmuls of a decoder layer, each with its gradient: norm, rotary positions, gate.

Sources: RMSNorm arXiv:1910.07467 eq. 4, rotary positions arXiv:2104.09864 eq. 34, SwiGLU arXiv:2002.05202 eq. 5; the
gradients are their derivatives. Sums and statistics are fp32, whatever the states are. On a CPU compiled kernels do the
same in one pass over memory; the torch code is what they are held against, and what runs without them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tunesmith.models.native.kernels import kernels_for
from tunesmith.models.scratch import scratch
from tunesmith.track.clock import part

BETWEEN = part("norms, rotary, gate")


@BETWEEN
def norm(
    x: Float[Tensor, "*rows D"], weight: Float[Tensor, " D"], eps: float, out: Float[Tensor, "*rows D"]
) -> Float[Tensor, "*rows 1"]:
    """out = x / sqrt(mean(x^2) + eps) * weight, rounded once; returns the factor 1 / sqrt(...) of every row."""
    if (kernels := kernels_for(x)) is not None:
        factor = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
        kernels.norm(x, weight.float(), eps, out, factor)
        return factor
    wide = scratch("norm", x.shape, x, torch.float32).copy_(x)
    factor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    out.copy_(wide.mul_(factor).mul_(weight.float()))
    return factor


@BETWEEN
def norm_backward(
    grad: Float[Tensor, "*rows D"],
    x: Float[Tensor, "*rows D"],
    weight: Float[Tensor, " D"],
    factor: Float[Tensor, "*rows 1"],
    beside: Float[Tensor, "*rows D"] | None = None,
) -> Float[Tensor, "*rows D"]:
    """The gradient of x, plus `beside`: that of the way around the norm."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if (kernels := kernels_for(x)) is not None:
        kernels.norm_backward(grad, x, weight.float(), factor, beside, out)
        return out
    wide = scratch("norm", x.shape, x, torch.float32).copy_(grad).mul_(weight.float())
    states = scratch("states", x.shape, x, torch.float32).copy_(x)
    dots = torch.mul(wide, states, out=scratch("dots", x.shape, x, torch.float32)).sum(-1, keepdim=True)
    wide.mul_(factor).addcmul_(states, dots.mul_(factor.pow(3)), value=-1 / x.shape[-1])
    if beside is not None:
        wide.add_(states.copy_(beside))
    return out.copy_(wide)


@BETWEEN
def norm_weight_gradient(
    grad: Float[Tensor, "*rows D"], x: Float[Tensor, "*rows D"], factor: Float[Tensor, "*rows 1"]
) -> Float[Tensor, " D"]:
    return (grad.float() * (x * factor)).reshape(-1, x.shape[-1]).sum(0)


def rotate(
    x: Float[Tensor, "K T G E"],
    cos: Float[Tensor, "T E"],
    sin: Float[Tensor, "T E"],
    out: Float[Tensor, "K T G E"],
) -> None:
    """out = x cos + (-x2, x1) sin, where x1 and x2 are the halves of each head."""
    if (kernels := kernels_for(x)) is not None:
        kernels.rotate(x, cos, sin, out, sign=1.0)
        return
    half = x.shape[-1] // 2
    first, second = sin[:, None, :half], sin[:, None, half:]
    torch.mul(x, cos[:, None], out=out)
    out[..., :half].addcmul_(x[..., half:], first, value=-1)
    out[..., half:].addcmul_(x[..., :half], second)


def rotate_backward(
    grad: Float[Tensor, "K T G E"],
    cos: Float[Tensor, "T E"],
    sin: Float[Tensor, "T E"],
    out: Float[Tensor, "K T G E"],
) -> None:
    """out = the gradient of x: the rotation the other way round."""
    if (kernels := kernels_for(grad)) is not None:
        kernels.rotate(grad, cos, sin, out, sign=-1.0)
        return
    half = grad.shape[-1] // 2
    first, second = sin[:, None, :half], sin[:, None, half:]
    torch.mul(grad, cos[:, None], out=out)
    out[..., :half].addcmul_(grad[..., half:], second)
    out[..., half:].addcmul_(grad[..., :half], first, value=-1)


@BETWEEN
def gate(both: Float[Tensor, "T 2I"], out: Float[Tensor, "T I"]) -> Float[Tensor, "T I"]:
    """out = silu(first half) * second half."""
    if (kernels := kernels_for(both)) is not None:
        kernels.gate(both, out)
        return out
    first, second = both.chunk(2, dim=-1)
    return torch.ops.aten.silu.out(first, out=out).mul_(second)


@BETWEEN
def gate_backward(
    grad: Float[Tensor, "T I"], both: Float[Tensor, "T 2I"], grad_both: Float[Tensor, "T 2I"]
) -> Float[Tensor, "T I"]:
    """Fills `grad_both`; returns silu(first) * second once more, which the next gradient needs."""
    if (kernels := kernels_for(both)) is not None:
        product = scratch("smooth", grad.shape, grad)
        kernels.gate_backward(grad, both, grad_both, product)
        return product
    first, second = both.chunk(2, dim=-1)
    grad_first, grad_second = grad_both.chunk(2, dim=-1)
    smooth = torch.ops.aten.silu.out(first, out=scratch("smooth", grad.shape, grad))
    torch.mul(grad, smooth, out=grad_second)
    through = torch.mul(grad, second, out=scratch("through", grad.shape, grad))
    torch.ops.aten.silu_backward.grad_input(through, first, grad_input=grad_first)
    return smooth.mul_(second)
