"""One decoder layer, forward and backward.

    x -> norm -> q k v -> heads -> attention -> out -> (+ x) -> norm -> gate up -> silu * -> down -> (+) ->

What is kept for the backward pass is chosen: the input, queries, keys and values, mixed values, the sum in the middle,
gate and up. Norms and the gated product are formed anew, because that costs less than keeping them. By its policy a
layer keeps less: selective drops gate and up, more than half of all bytes, and forms them again from the middle; full
keeps the input alone; offloaded puts that away as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.models.forest import Forest
from tunesmith.models.forest_attention import Heads
from tunesmith.models.layer.attend import Attended, attended, attended_backward
from tunesmith.models.layer.heads import Rotation, by_key_head, heads_backward, heads_of
from tunesmith.models.layer.parts import gate, gate_backward, norm, norm_backward, norm_weight_gradient
from tunesmith.models.layer.projection import Gradients, Projection
from tunesmith.models.layer.weights import Norm, Shape, Weights
from tunesmith.models.offload import HostStore
from tunesmith.models.policy import Policy
from tunesmith.models.scratch import Loan, lend, scratch


@dataclass(frozen=True, slots=True)
class Call:
    """Everything about one use of a layer that is not a tensor with a gradient."""

    weights: Weights
    shape: Shape
    rotation: Rotation
    forest: Forest
    rows: Int[Tensor, " R"] | None  # the only rows wanted of the layer; None: all
    policy: Policy = "off"
    store: HostStore | None = None  # where the input waits when it is offloaded


@dataclass(frozen=True, slots=True)
class Half:
    """What is kept of a half of the layer: low-rank rows, and what went into the norm behind it."""

    low_in: Float[Tensor, "T R"] | None
    low_out: Float[Tensor, "T R"] | None
    before_norm: Float[Tensor, "T D"] | None


@dataclass(frozen=True, slots=True)
class Kept:
    raw: Float[Tensor, "T O"] | None  # projected rows, where queries and keys have norms
    attended: Attended
    mixed: Float[Tensor, "T Q"]
    attention: Half
    middle: Float[Tensor, "T D"]
    both: Float[Tensor, "T 2I"] | None  # gate and up side by side; None: formed again
    mlp: Half
    loans: list[Loan]  # of most of this


class LayerFunction(torch.autograd.Function):
    """`forward_layer` with its gradient; the trained parameters are handed over as well, for autograd to see."""

    @staticmethod
    def forward(ctx, x, call, *trained):  # pyright: ignore[reportIncompatibleMethodOverride]
        out, kept = forward_layer(x, call)
        ctx.parcel = None if call.store is None or call.policy != "offloaded" else call.store.put(x)
        if ctx.parcel is None:
            ctx.save_for_backward(x)
        ctx.call, ctx.kept = call, kept_of(kept, call.policy)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        x = ctx.saved_tensors[0] if ctx.parcel is None else ctx.parcel.open()
        kept, ctx.kept = ctx.kept, None
        if kept is None:
            kept = form_again(x, ctx.call)
        grad_x, gradients = backward_layer(grad, x, kept, ctx.call, ctx.needs_input_grad[0])
        return grad_x, None, *(gradients.get(each) for each in ctx.call.weights.trained())


def kept_of(kept: Kept, policy: Policy) -> Kept | None:
    """What a layer of that policy keeps besides its input."""
    if policy == "selective":
        return replace(kept, both=None)
    return kept if policy == "off" else None


def forward_layer(x: Float[Tensor, "T D"], call: Call) -> tuple[Float[Tensor, "R D"], Kept]:
    weights = call.weights
    kept = up_to_gate(x, call)
    out = torch.empty_like(kept.middle)
    mlp = close_half(gated(kept, call), weights.down, weights.norms.after_mlp, kept.middle, kept.mlp.low_in, out)
    return out, replace(kept, mlp=mlp)


def form_again(x: Float[Tensor, "T D"], call: Call) -> Kept:
    """What `forward_layer` keeps, without the last product where only the layer's output reads it."""
    down = call.weights.down
    if call.weights.norms.after_mlp is not None:
        return forward_layer(x, call)[1]
    kept = up_to_gate(x, call)
    low_out = down.low_rows(gated(kept, call)) if down.has_low_rank else None
    return replace(kept, mlp=replace(kept.mlp, low_out=low_out))


def gated(kept: Kept, call: Call) -> Float[Tensor, "T I"]:
    """silu(gate) * up in scratch memory."""
    assert kept.both is not None
    size = len(kept.both), call.weights.gate_up.width // 2
    return gate(kept.both, out=scratch("product", size, kept.both))


def up_to_gate(x: Float[Tensor, "T D"], call: Call) -> Kept:
    """The layer without its last product."""
    weights, shape = call.weights, call.shape
    size = weights.qkv.width
    has_norms = weights.norms.query is not None
    loans: list[Loan] = []
    raw = lend("raw", (len(x), size), x, loans) if has_norms else scratch("qkv", (len(x), size), x)
    low = weights.qkv.apply(normed(x, weights.norms.before_attention), raw)
    query, key, value = raw.split([shape.query_width, shape.key_width, shape.key_width], 1)
    heads = Heads(
        heads_of(query, shape, weights.norms.query, call.rotation, loans),
        heads_of(key, shape, weights.norms.key, call.rotation, loans),
        lend("value", (shape.key_heads, len(x), shape.width), x, loans).copy_(by_key_head(value, shape)[:, :, 0]),
    )
    kept, mixed = attended(heads, call.forest, shape, lend("mixed", (len(x), shape.query_width), x, loans))
    if call.rows is not None:
        x, mixed = x[call.rows], mixed[call.rows]
    middle = lend("middle", x.shape, x, loans)
    attention = close_half(mixed, weights.out, weights.norms.after_attention, x, low, middle)
    size = len(middle), weights.gate_up.width
    both = lend("both", size, x, loans) if call.policy == "off" else scratch("both", size, x)
    low = widen(middle, weights, both)
    return Kept(raw if has_norms else None, kept, mixed, attention, middle, both, Half(low, None, None), loans)


def widen(middle: Float[Tensor, "T D"], weights: Weights, both: Float[Tensor, "T 2I"]) -> Tensor | None:
    """both = gate and up; returns their low-rank rows."""
    return weights.gate_up.apply(normed(middle, weights.norms.before_mlp), both)


def close_half(
    rows: Tensor,
    projection: Projection,
    after: Norm | None,
    beside: Float[Tensor, "T D"],
    low_in: Tensor | None,
    out: Float[Tensor, "T D"],
) -> Half:
    """out = beside + (normed) projected rows."""
    projected = scratch("projected", beside.shape, beside)
    low_out = projection.apply(rows, projected)
    if after is None:
        torch.add(beside, projected, out=out)
        return Half(low_in, low_out, None)
    before_norm = projected.clone()
    torch.add(beside, normed(before_norm, after), out=out)
    return Half(low_in, low_out, before_norm)


def normed(x: Float[Tensor, "T D"], before: Norm | None) -> Float[Tensor, "T D"]:
    """The normed rows in scratch memory, or x itself where the architecture has no norm there."""
    if before is None:
        return x
    out = scratch("normed", x.shape, x)
    norm(x, before.weight, before.eps, out=out)
    return out


def backward_layer(
    grad: Float[Tensor, "R D"], x: Float[Tensor, "T D"], kept: Kept, call: Call, wants_x: bool
) -> tuple[Float[Tensor, "T D"] | None, Gradients]:
    weights, norms = call.weights, call.weights.norms
    gradients: Gradients = {}
    grad = grad.contiguous()
    both = kept.both
    if both is None:
        both = scratch("both", (len(kept.middle), weights.gate_up.width), x)
        widen(kept.middle, weights, both)

    inner = norm_after_backward(grad, kept.mlp, norms.after_mlp, gradients)
    slope = weights.down.slope(inner, kept.mlp.low_out)
    product = slope.of_rows(scratch("product_grad", (len(grad), both.shape[1] // 2), x))
    grad_both = scratch("both_grad", both.shape, x)
    product = gate_backward(product, both, grad_both)
    gradients |= slope.of_parameters(product)
    grad = norm_before_backward(grad_both, grad, kept.middle, weights.gate_up, norms.before_mlp, kept.mlp, gradients)

    inner = norm_after_backward(grad, kept.attention, norms.after_attention, gradients)
    slope = weights.out.slope(inner, kept.attention.low_out)
    grad_mixed = slope.of_rows(scratch("mixed_grad", kept.mixed.shape, x))
    gradients |= slope.of_parameters(kept.mixed)
    mixed = kept.mixed
    if call.rows is not None:
        grad, grad_mixed, mixed = (spread(rows, call.rows, len(x)) for rows in (grad, grad_mixed, mixed))
    grad_raw = qkv_backward(grad_mixed, mixed, kept, call, gradients)
    grad_x = norm_before_backward(
        grad_raw, grad, x, weights.qkv, norms.before_attention, kept.attention, gradients, wants_x
    )
    return grad_x if wants_x else None, gradients


def qkv_backward(
    grad_mixed: Float[Tensor, "T Q"], mixed: Float[Tensor, "T Q"], kept: Kept, call: Call, gradients: Gradients
) -> Float[Tensor, "T O"]:
    """The gradient of the projected rows."""
    shape, norms = call.shape, call.weights.norms
    grads = attended_backward(grad_mixed, mixed, kept.attended, call.forest, shape)
    widths = [shape.query_width, shape.key_width, shape.key_width]
    grad_raw = scratch("qkv_grad", (len(grad_mixed), sum(widths)), grad_mixed)
    of_query, of_key, of_value = grad_raw.split(widths, 1)
    raw_query, raw_key = (None, None) if kept.raw is None else kept.raw.split(widths, 1)[:2]
    gradients |= heads_backward(grads.query, raw_query, shape, norms.query, call.rotation, of_query)
    gradients |= heads_backward(grads.key, raw_key, shape, norms.key, call.rotation, of_key)
    of_value.unflatten(1, (shape.key_heads, -1)).copy_(grads.value.transpose(0, 1))
    return grad_raw


def norm_after_backward(
    grad: Float[Tensor, "T D"], half: Half, after: Norm | None, gradients: Gradients
) -> Float[Tensor, "T D"]:
    """The gradient of what went into the norm behind a half of the layer."""
    if after is None:
        return grad
    assert half.before_norm is not None
    factor = norm(half.before_norm, after.weight, after.eps, out=scratch("normed", grad.shape, grad))
    if after.weight.requires_grad:
        gradients[after.weight] = norm_weight_gradient(grad, half.before_norm, factor)
    return norm_backward(grad, half.before_norm, after.weight, factor)


def norm_before_backward(
    grad: Float[Tensor, "T O"],
    beside: Float[Tensor, "T D"],
    x: Float[Tensor, "T D"],
    projection: Projection,
    before: Norm | None,
    half: Half,
    gradients: Gradients,
    wants_x: bool = True,
) -> Float[Tensor, "T D"]:
    """The gradient of x, which goes into a half of the layer and around it."""
    rows, factor = x, None
    if before is not None:
        rows = scratch("normed", x.shape, x)
        factor = norm(x, before.weight, before.eps, out=rows)
    slope = projection.slope(grad, half.low_in)
    gradients |= slope.of_parameters(rows)
    if not wants_x and (before is None or not before.weight.requires_grad):
        return beside
    inner = slope.of_rows(scratch("rows_grad", x.shape, x))
    if before is None:
        return beside + inner
    assert factor is not None
    if before.weight.requires_grad:
        gradients[before.weight] = norm_weight_gradient(inner, x, factor)
    return norm_backward(inner, x, before.weight, factor, beside)


def spread(rows: Float[Tensor, "R D"], places: Int[Tensor, " R"], total: int) -> Float[Tensor, "T D"]:
    """The rows at their places among `total`, zero elsewhere."""
    return rows.new_zeros(total, rows.shape[1]).index_copy_(0, places, rows)
