"""Norms and gated layers with hand-written backward passes: fewer temporaries, the same numbers up to rounding.

Source: the derivatives of arXiv:1910.07467 eq. 4 and arXiv:2002.05202 eq. 5. Parameter names stay as they are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from tunesmith.models.layer.parts import BETWEEN, norm, norm_backward, norm_weight_gradient

# Modules that compute exactly these formulas in transformers; any other module is left alone.
NORMS = frozenset(f"{family}RMSNorm" for family in ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Phi3"))
GATED = frozenset(f"{family}MLP" for family in ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3"))


def fuse(model: PreTrainedModel) -> PreTrainedModel:
    """Replace the norms and gated layers of known architectures; call it before adapters are attached."""
    for name, module in list(model.named_modules()):
        kind = type(module).__name__
        if kind in NORMS:
            model.set_submodule(name, RMSNorm(module))
        elif kind in GATED and model.config.hidden_act == "silu":
            model.set_submodule(name, GatedLayer(module))
    return model


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, statistics in fp32."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight: nn.Parameter = norm.weight  # pyright: ignore[reportAttributeAccessIssue]
        self.variance_epsilon: float = norm.variance_epsilon  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, hidden_states: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        return NormFunction.apply(hidden_states, self.weight, self.variance_epsilon)


class NormFunction(torch.autograd.Function):
    """`parts.norm` with its gradient."""

    @staticmethod
    def forward(ctx, x, weight, eps):  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, out = x.reshape(-1, x.shape[-1]), torch.empty_like(x, memory_format=torch.contiguous_format)
        factor = norm(rows, weight, eps, out.view(rows.shape))
        ctx.save_for_backward(x, weight, factor)
        return out

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, factor = ctx.saved_tensors
        rows, grads = x.reshape(-1, x.shape[-1]), grad.reshape(-1, x.shape[-1])
        grad_weight = norm_weight_gradient(grads, rows, factor).to(weight.dtype) if ctx.needs_input_grad[1] else None
        grad_x = norm_backward(grads, rows, weight, factor).view(x.shape) if ctx.needs_input_grad[0] else None
        return grad_x, grad_weight, None


class GatedLayer(nn.Module):
    """down(silu(gate(x)) * up(x)), remembering gate(x) and up(x) alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.gate_proj: nn.Module = layer.gate_proj  # pyright: ignore[reportAttributeAccessIssue]
        self.up_proj: nn.Module = layer.up_proj  # pyright: ignore[reportAttributeAccessIssue]
        self.down_proj: nn.Module = layer.down_proj  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, hidden_states: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        return self.down_proj(GateFunction.apply(self.gate_proj(hidden_states), self.up_proj(hidden_states)))


class GateFunction(torch.autograd.Function):
    @staticmethod
    @BETWEEN
    def forward(ctx, gate, up):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @BETWEEN
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        gate, up = ctx.saved_tensors
        grad_up = functional.silu(gate).mul_(grad)
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return grad_gate, grad_up
