"""The linear layer of AdaLoRA: W + s P Λ Q in one autograd node, in place of PEFT's module."""

from __future__ import annotations

import peft
import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.adalora.layer import SVDLinear
from torch import Tensor, nn

from tunesmith.models.lora import LoraFunction, is_linear, merges_into_bits
from tunesmith.models.quantized.linear import QuantizedLinear, frozen_of

SMALL = 1e-5  # what PEFT adds to the first rank that it divides by


class SingularLinear(SVDLinear):
    """PEFT's names and scale; learned numbers are fp32 whatever the model's type is. What is rare runs PEFT's code."""

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: peft.AdaLoraConfig) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().update_layer(adapter_name, r, lora_alpha, config=config)
        for held in (self.lora_A, self.lora_E, self.lora_B):
            held[adapter_name].data = held[adapter_name].data.float()
        exact = torch.tensor([float(r)], device=self.lora_A[adapter_name].device)
        self.ranknum[adapter_name] = nn.Parameter(exact, requires_grad=False)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        base, adapters = self.get_base_layer(), self.active_adapters
        if not is_linear(base) or self.disable_adapters or self.merged or len(adapters) != 1:
            return super().forward(x)
        (name,) = adapters
        if name not in self.lora_A or (self.training and isinstance(self.lora_dropout[name], nn.Dropout)):
            return super().forward(x)
        scale = self.scaling[name] / (self.ranknum[name] + SMALL)
        right, left = self.lora_A[name] * self.lora_E[name], self.lora_B[name]
        out = LoraFunction.apply(x.reshape(-1, x.shape[-1]), frozen_of(base), base.bias, right, left, scale)
        assert isinstance(out, Tensor)
        return out.view(*x.shape[:-1], -1)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """PEFT's merge in place; into a quantised weight there is none (E323)."""
        if isinstance(self.get_base_layer(), QuantizedLinear):
            raise merges_into_bits()
        super().merge(safe_merge, adapter_names)


def use_singular_linear(model: PeftModel, config: peft.AdaLoraConfig) -> None:
    inside = model.get_base_model()
    for name, module in list(inside.named_modules()):
        if isinstance(module, SVDLinear):
            (adapter,) = module.r
            alpha = module.lora_alpha[adapter]
            inside.set_submodule(name, SingularLinear(module.base_layer, adapter, config, module.r[adapter], alpha))
