"""The linear layer of BOFT: blocks of its inputs are rotated, gathered anew and rotated again.

PEFT's own has the rotations as dense matrices, needs a CUDA extension for more than one factor, which it compiles when
the layer is made, and goes on with one factor where that fails.
"""

from __future__ import annotations

import peft
import torch
from jaxtyping import Float, Int
from peft.tuners.boft.layer import BOFTLayer, Linear, MultiplicativeDropoutLayer
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn

from tunesmith.models.lora import is_linear, merges_into_bits
from tunesmith.models.quantized.linear import QuantizedLinear


class ButterflyLinear(Linear):
    """PEFT's names, numbers and order of factors; learned numbers are fp32 whatever the model's type is."""

    def __init__(self, base_layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        BOFTLayer.__init__(self, base_layer)
        self.fan_in_fan_out = self.is_target_conv_1d_layer = False

    def update_layer(self, adapter_name: str, config: peft.BOFTConfig) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        base, factors = self.get_base_layer(), config.boft_n_butterfly_factor
        assert isinstance(base, nn.Linear)
        device = base.weight.device
        size = config.boft_block_size or self.in_features // config.boft_block_num
        blocks = self.in_features // size
        orders = [butterfly(self.in_features, size, factor) for factor in range(factors)]
        pairs = torch.stack([torch.stack([order.argsort(), order]) for order in orders])
        self.register_buffer(f"orders_{adapter_name}", pairs.to(device), persistent=False)
        self.boft_R[adapter_name] = nn.Parameter(torch.zeros(factors, blocks, size, size, device=device))
        self.boft_s[adapter_name] = nn.Parameter(torch.ones(self.out_features, 1, device=device))
        self.boft_block_size[adapter_name], self.boft_block_num[adapter_name] = size, blocks
        rate = config.boft_dropout
        self.boft_dropout[adapter_name] = MultiplicativeDropoutLayer(p=rate) if rate else nn.Identity()
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        base = self.get_base_layer()
        if self.disable_adapters or self.merged:
            return base(x)
        names = [name for name in self.active_adapters if name in self.boft_R]
        for name in reversed(names):
            x = self.rotated(name, x.reshape(-1, self.in_features)).view(x.shape)
        out = base(x)
        for name in names:
            more = (self.boft_s[name].view(-1) - 1).to(out.dtype)
            out = out + more * (out if base.bias is None else out - base.bias)
        return out

    def rotated(self, name: str, rows: Float[Tensor, "T in"]) -> Float[Tensor, "T in"]:
        """rows R with R = F_m ... F_1, each factor a rotation of blocks between two orders of the inputs."""
        factors, orders = self.boft_R[name], self.get_buffer(f"orders_{name}")
        turns = self.boft_dropout[name](self.cayley_batch(factors.flatten(0, 1)).view(factors.shape)).to(rows.dtype)
        for factor in reversed(range(len(turns))):
            blocks = (rows[:, orders[factor, 0]] if factor else rows).unflatten(1, turns.shape[1:3])
            rows = torch.einsum("tdi,dij->tdj", blocks, turns[factor]).flatten(1)
            rows = rows[:, orders[factor, 1]] if factor else rows
        return rows

    def get_delta_weight(self, adapter: str) -> tuple[Float[Tensor, "in in"], Float[Tensor, "out 1"]]:
        """R and the scale of each row, from which PEFT forms the merged weight."""
        numbers = self.boft_R[adapter]
        return self.rotated(adapter, torch.eye(self.in_features, device=numbers.device)), self.boft_s[adapter]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """PEFT's merge in place; into a quantised weight there is none (E323)."""
        if isinstance(self.get_base_layer(), QuantizedLinear):
            raise merges_into_bits()
        super().merge(safe_merge, adapter_names)


def butterfly(inputs: int, size: int, factor: int) -> Int[Tensor, " I"]:
    """The order of inputs of one factor: in groups of `size` x 2^factor, even halves of blocks before odd ones.

    That of factor 0 is the plain one.
    """
    order = torch.arange(inputs)
    if factor == 0:
        return order
    halves = order.view(-1, 2**factor, 2, size // 2)  # groups, pairs, which of a pair, numbers
    return halves.transpose(1, 2).flatten()


def put_butterflies(model: nn.Module, config: peft.BOFTConfig) -> None:
    """Our layer in place of every linear one that the settings name, for PEFT to find as one of its own."""
    assert config.target_modules != "all-linear", "PEFT would find what is inside our layers"
    for name, module in list(model.named_modules()):
        if is_linear(module) and not name.endswith(".base_layer") and check_target_module_exists(config, name):
            model.set_submodule(name, ButterflyLinear(module))
