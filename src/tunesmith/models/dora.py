"""DoRA's lengths: the norm of every row of W + s B A, exact and without a matrix of that size."""

from __future__ import annotations

import torch
from jaxtyping import Float
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn

from tunesmith.models.quantized.linear import QuantizedLinear
from tunesmith.track.clock import current

ROWS = 512  # rows of W that are held in fp32 at once
TINY = 1e-30  # least square of a norm: the three terms may cancel


@torch.no_grad()
def square_norms(weight: Float[Tensor, "O I"]) -> Float[Tensor, " O"]:
    """The squares of the rows' norms, in fp32."""
    return torch.cat([rows.float().square().sum(1) for rows in weight.split(ROWS)])


@torch.no_grad()
def row_norms(
    weight: Float[Tensor, "O I"],
    a: Float[Tensor, "R I"],
    b: Float[Tensor, "O R"],
    scale: float,
    squares: Float[Tensor, " O"],
) -> Float[Tensor, " O"]:
    """Norms of the rows of W + s B A in fp32 (arXiv:2402.09353 eq. 5), `squares` being those of W alone.

    |W_i + s B_i A|^2 = |W_i|^2 + 2 s B_i (A W_i^T) + s^2 B_i (A A^T) B_i^T.
    """
    a, b = a.float(), b.float()
    mixed = torch.cat([rows.float() @ a.T for rows in weight.split(ROWS)])
    own = b @ (a @ a.T)
    return (squares + (b * (2 * scale * mixed + scale**2 * own)).sum(1)).clamp_min_(TINY).sqrt_()


class Lengths(DoraLinearLayer):
    """The learned lengths `weight` (outputs,) in fp32, under PEFT's name and in PEFT's place."""

    def __init__(self, weight: Float[Tensor, "O I"]) -> None:
        super().__init__(fan_in_fan_out=False)
        self.weight = nn.Parameter(square_norms(weight).clamp_min_(TINY).sqrt_())
        self.known: tuple[tuple[int, int], Tensor] | None = None  # which W it was, and the squares of its rows

    def squares(self, weight: Tensor, which: tuple[int, int]) -> Float[Tensor, " O"]:
        """Those of W's rows, formed again only when W is another."""
        if self.known is None or self.known[0] != which:
            self.known = which, square_norms(weight)
        return self.known[1]

    def gain(
        self, weight: Tensor, a: Tensor, b: Tensor, scale: float, which: tuple[int, int] | None = None
    ) -> Float[Tensor, " O"]:
        """Learned length by present one; the present one has no gradient (section 4.3 of the paper)."""
        squares = self.squares(weight, which or (weight.data_ptr(), weight._version))
        return self.weight.float() / row_norms(weight, a.detach(), b.detach(), scale, squares)


class ExactDora(DoraLinearVariant):
    """PEFT's variant with our lengths; where several adapters are active at once its own forward is used."""

    @staticmethod
    def init(module: PeftLinear, adapter_name: str, **_: object) -> None:
        if not module.lora_magnitude_vector:
            module.adapter_layer_names = (*module.adapter_layer_names, "lora_magnitude_vector")
        weight = module.get_base_layer().weight
        assert isinstance(weight, Tensor)
        module.lora_magnitude_vector[adapter_name] = Lengths(weight)


def gain_of(module: PeftLinear, name: str) -> Float[Tensor, " O"]:
    """The factors on the outputs of a DoRA layer as they are now."""
    lengths, base = module.lora_magnitude_vector[name], module.get_base_layer()
    weight = base.weight
    assert isinstance(lengths, Lengths)
    assert isinstance(weight, Tensor)
    a, b = (module.get_parameter(f"{factor}.{name}.weight") for factor in ("lora_A", "lora_B"))
    which = (id(base.packed), -1) if isinstance(base, QuantizedLinear) else None  # it is expanded anew each time
    return lengths.gain(weight, a, b, module.scaling[name], which)


class Lengthen(torch.autograd.Function):
    """y = gain * x + bias with the gain in fp32: near 1 a gain in bf16 would stand still."""

    @staticmethod
    def forward(ctx, x, gain, bias):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x, gain)
        ctx.mark = current()
        y = x * gain
        return (y if bias is None else y + bias).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        with ctx.mark:
            x, gain = ctx.saved_tensors
            of_gain = (grad.float() * x).sum(0) if ctx.needs_input_grad[1] else None
            of_x = (grad * gain).to(x.dtype) if ctx.needs_input_grad[0] else None
            return of_x, of_gain, None
