"""The fast LoRA linear: base product and low-rank product in one autograd node, plugged into PEFT."""

from __future__ import annotations

from typing import TypeGuard

import torch
from jaxtyping import Float
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn

from tunesmith.errors import ModelError, Where
from tunesmith.models.dora import ExactDora, Lengthen, gain_of
from tunesmith.models.quantized.linear import QuantizedLinear, expanded, frozen_of
from tunesmith.models.spectral import check_rank, principal_factors, triangular_factors
from tunesmith.track.clock import current


class LoraFunction(torch.autograd.Function):
    """y = x W^T + bias + s (x A^T) B^T with W frozen; A and B may be fp32 masters, the products run in x's type.

    A packed W is expanded for each product, and not kept.
    """

    @staticmethod
    def forward(ctx, x, frozen, bias, a, b, scale):  # pyright: ignore[reportIncompatibleMethodOverride]
        small_a, small_b = a.to(x.dtype), (b * scale).to(x.dtype)
        low = x @ small_a.T
        y = torch.nn.functional.linear(x, expanded(frozen, x), bias).addmm_(low, small_b.T)
        ctx.save_for_backward(x, a, b, low)
        ctx.frozen, ctx.scale, ctx.mark = frozen, scale, current()
        return y

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        with ctx.mark:
            x, a, b, low = ctx.saved_tensors
            small_a, small_b = a.to(x.dtype), (b * ctx.scale).to(x.dtype)
            grad_low = grad @ small_b
            grad_x = None
            if ctx.needs_input_grad[0]:
                grad_x = (grad @ expanded(ctx.frozen, grad)).addmm_(grad_low, small_a)
            grad_a = (grad_low.T @ x).to(a.dtype) if ctx.needs_input_grad[3] else None
            grad_b = (grad.T @ low).to(b.dtype) * ctx.scale
            return grad_x, None, None, grad_a, grad_b, None


class FastLoraLinear(PeftLinear):
    """PEFT's LoRA linear with fast paths for the ordinary cases; anything else runs PEFT's own code.

    PiSSA and OLoRA leave W as it is: what their factors began with, s B0 A0, is subtracted from the outputs instead.
    """

    @property
    def lora_variants(self) -> dict[tuple[str, ...], type[LoraVariant] | None]:
        return {**super().lora_variants, ("use_dora",): ExactDora}

    def forward(self, x: Float[Tensor, "*batch in"], *args: object, **kwargs: object) -> Float[Tensor, "*batch out"]:
        adapters, base = self.active_adapters, self.get_base_layer()
        if args or kwargs or not is_linear(base) or not self.is_alone(adapters):
            return self.less_start(x, super().forward(x, *args, **kwargs))
        (name,) = adapters
        rows = x.reshape(-1, x.shape[-1])
        if self.lora_variant:
            out = self.lengthened(name, rows)
        elif self.is_fast(adapters) or (self.began(name) and not self.drops(name)):
            out = LoraFunction.apply(rows, frozen_of(base), base.bias, *self.factors(name), self.scaling[name])
        else:
            return self.less_start(x, super().forward(x))
        return out.view(*x.shape[:-1], -1)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """PEFT's merge in place; into a quantised weight there is none (E323)."""
        if isinstance(self.get_base_layer(), QuantizedLinear):
            raise merges_into_bits()
        super().merge(safe_merge, adapter_names)

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """A and B; where the adapter began with a part of W, that part taken away in more ranks."""
        a, b = self.get_parameter(f"lora_A.{name}.weight"), self.get_parameter(f"lora_B.{name}.weight")
        if not self.began(name):
            return a, b
        start_a, start_b = self.start(name)
        return torch.cat([a, start_a.to(a.dtype)]), torch.cat([b, -start_b.to(b.dtype)], dim=1)

    def lengthened(self, name: str, rows: Float[Tensor, "T in"]) -> Float[Tensor, "T out"]:
        """DoRA: the outputs without the bias, times learned lengths by present ones (arXiv:2402.09353 eq. 5)."""
        base, (a, b), scale = self.get_base_layer(), self.factors(name), self.scaling[name]
        assert isinstance(base, nn.Linear)
        if self.drops(name):
            low = self.lora_dropout[name](rows) @ a.T.to(rows.dtype)
            out = nn.functional.linear(rows, base.weight) + low @ (b * scale).T.to(rows.dtype)
        else:
            out = LoraFunction.apply(rows, frozen_of(base), None, a, b, scale)
        return Lengthen.apply(out, gain_of(self, name), base.bias)

    def less_start(self, x: Tensor, out: Tensor) -> Tensor:
        if self.disable_adapters or self.merged:
            return out
        for name in self.active_adapters:
            if self.began(name):
                a, b = (factor.to(x.dtype) for factor in self.start(name))
                out = out - self.scaling[name] * (x @ a.T) @ b.T
        return out

    def began(self, name: str) -> bool:
        """Whether the adapter began with a part of W."""
        return f"start_a_{name}" in self._buffers

    def start(self, name: str) -> tuple[Tensor, Tensor]:
        """A0 and B0: what the adapter began with."""
        return self.get_buffer(f"start_a_{name}"), self.get_buffer(f"start_b_{name}")

    def pissa_init(self, adapter_name: str, init_lora_weights: str) -> None:
        """PEFT's hook: A and B begin with singular directions of W, and W stays what it is."""
        iterations = int(init_lora_weights.rpartition("_niter_")[2]) if "_niter_" in init_lora_weights else 0
        weight, rank = self.weight_for(adapter_name), self.r[adapter_name]
        self.begin(adapter_name, principal_factors(weight, rank, self.scaling[adapter_name], iterations))

    def olora_init(self, adapter_name: str) -> None:
        """PEFT's hook: A and B begin with the QR decomposition of W, and W stays what it is."""
        self.begin(adapter_name, triangular_factors(self.weight_for(adapter_name), self.r[adapter_name]))

    def weight_for(self, name: str) -> Tensor:
        weight = self.get_base_layer().weight
        assert isinstance(weight, Tensor)
        check_rank(self.r[name], tuple(weight.shape))
        return weight

    def begin(self, name: str, factors: tuple[Tensor, Tensor]) -> None:
        """Start there; the start is kept beside, and not saved."""
        for place, layer, factor in zip(("a", "b"), (self.lora_A, self.lora_B), factors, strict=True):
            layer[name].weight.data = factor.clone()
            self.register_buffer(f"start_{place}_{name}", factor, persistent=False)

    def is_plain(self) -> bool:
        """Whether every adapter is W + s BA and nothing else (no DoRA, no bias, no start to take away)."""
        return not self.lora_variant and not any(self.lora_bias.values()) and not self._buffers

    def is_alone(self, adapters: list[str]) -> bool:
        """Whether one adapter is at work on frozen weights, one that the paths of this class compute."""
        if len(adapters) != 1 or self.disable_adapters or self.merged:
            return False
        (name,) = adapters
        if name not in self.lora_A or self.lora_bias[name]:
            return False
        if self.lora_variant and not isinstance(self.lora_variant.get(name), ExactDora):
            return False
        return not any(parameter.requires_grad for parameter in self.get_base_layer().parameters())

    def drops(self, name: str) -> bool:
        dropout = self.lora_dropout[name]
        return self.training and isinstance(dropout, nn.Dropout) and dropout.p > 0

    def is_fast(self, adapters: list[str]) -> bool:
        """Whether the layer is W + s BA just now, which the written-out decoder layer computes too."""
        return self.is_alone(adapters) and self.is_plain() and not self.drops(adapters[0])


def is_linear(layer: object) -> TypeGuard[nn.Linear]:
    """Whether it is the linear layer that this class computes with, its weight in full or packed."""
    return type(layer) is nn.Linear or isinstance(layer, QuantizedLinear)


def merges_into_bits() -> ModelError:
    return ModelError(
        "E323",
        "an adapter cannot be merged into weights of few bits: rounding would take away most of what it learned",
        where=Where(field="model.quantization"),
        fixes=["tunesmith merge RUN FOLDER, which writes 16 bits", "use the adapter as it is"],
    )
