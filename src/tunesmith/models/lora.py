"""The fast LoRA linear: base product and low-rank product in one autograd node, plugged into PEFT."""

from __future__ import annotations

import torch
from jaxtyping import Float
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn

from tunesmith.track.clock import current


class LoraFunction(torch.autograd.Function):
    """y = x W^T + bias + s (x A^T) B^T with W frozen; A and B may be fp32 masters, the products run in x's type."""

    @staticmethod
    def forward(ctx, x, weight, bias, a, b, scale):  # pyright: ignore[reportIncompatibleMethodOverride]
        small_a, small_b = a.to(x.dtype), (b * scale).to(x.dtype)
        low = x @ small_a.T
        y = torch.nn.functional.linear(x, weight, bias).addmm_(low, small_b.T)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale, ctx.mark = scale, current()
        return y

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        with ctx.mark:
            x, weight, a, b, low = ctx.saved_tensors
            small_a, small_b = a.to(x.dtype), (b * ctx.scale).to(x.dtype)
            grad_low = grad @ small_b
            grad_x = None
            if ctx.needs_input_grad[0]:
                grad_x = (grad @ weight).addmm_(grad_low, small_a)
            grad_a = (grad_low.T @ x).to(a.dtype)
            grad_b = (grad.T @ low).to(b.dtype) * ctx.scale
            return grad_x, None, None, grad_a, grad_b, None


class FastLoraLinear(PeftLinear):
    """PEFT's LoRA linear with the fast path for the ordinary case; anything else runs PEFT's own code."""

    def forward(self, x: Float[Tensor, "*batch in"], *args: object, **kwargs: object) -> Float[Tensor, "*batch out"]:
        adapters = self.active_adapters
        base = self.get_base_layer()
        if not self.is_fast(adapters) or args or kwargs or type(base) is not nn.Linear:
            return super().forward(x, *args, **kwargs)
        (name,) = adapters
        rows = x.reshape(-1, x.shape[-1])
        out = LoraFunction.apply(
            rows, base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        )
        return out.view(*x.shape[:-1], -1)

    def is_plain(self) -> bool:
        """Whether every adapter is W + s BA and nothing else (no DoRA, no bias)."""
        return not self.lora_variant and not any(self.lora_bias.values())

    def is_fast(self, adapters: list[str]) -> bool:
        if len(adapters) != 1 or self.disable_adapters or self.merged:
            return False
        (name,) = adapters
        if name not in self.lora_A or self.lora_variant or self.lora_bias[name]:
            return False
        dropout = self.lora_dropout[name]
        dropped = self.training and isinstance(dropout, torch.nn.Dropout) and dropout.p > 0
        return not dropped and not any(parameter.requires_grad for parameter in self.get_base_layer().parameters())
