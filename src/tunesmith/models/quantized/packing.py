"""Which linear layers of a model are quantised, and how one of them takes its place."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tunesmith.errors import ModelError, Where
from tunesmith.models.inventory import LAYER
from tunesmith.models.quantization_config import QuantizationConfig
from tunesmith.models.quantized.linear import QuantizedLinear
from tunesmith.models.quantized.loftq import Start, begin, less
from tunesmith.models.quantized.packed import pack

FIELD = "model.quantization"


@dataclass(frozen=True, slots=True)
class Packing:
    """How a base is quantised: each weight as it is, where a low-rank adapter is to begin, or less what `taken` names.

    `taken` has A and s B that are subtracted first, by the name of the layer.
    """

    settings: QuantizationConfig
    start: Start | None = None
    taken: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def replace(self, model: nn.Module, name: str, weight: Float[Tensor, "O I"], dtype: torch.dtype) -> None:
        """Put the layer called `name` with that weight in the place of the present one, whose bias it keeps."""
        present = model.get_submodule(name)
        assert isinstance(present, nn.Linear)
        if name in self.taken:
            layer = QuantizedLinear(pack(less(weight, self.taken[name]), self.settings), present.bias, dtype)
            layer.taken = self.taken[name]
        elif self.start is not None and self.start.reaches(name):
            packed, begun = begin(weight, self.settings, self.start)
            layer = QuantizedLinear(packed, present.bias, dtype)
            layer.beginning, layer.taken = begun.factors, begun.taken
        else:
            layer = QuantizedLinear(pack(weight, self.settings), present.bias, dtype)
        model.set_submodule(name, layer)


def is_held(name: str, module: nn.Module) -> bool:
    """Whether the module is a linear layer that is quantised: those of layers are, the head is not."""
    return type(module) is nn.Linear and LAYER.search(f"{name}.") is not None


@torch.no_grad()
def quantize(model: nn.Module, packing: Packing) -> nn.Module:
    """The model with its linear layers quantised in place."""
    for name, module in list(model.named_modules()):
        if is_held(name, module):
            weight = module.get_parameter("weight")
            packing.replace(model, name, weight, weight.dtype)
    check_quantized(model)
    return model


def check_quantized(model: nn.Module) -> None:
    """ModelError E325 when no layer is quantised, E327 when a weight is not finite."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    if not layers:
        raise nothing_held()
    broken = [name for name, layer in layers.items() if not layer.packed.is_finite()]
    if broken:
        raise ModelError(
            "E327",
            f"{len(broken)} weights hold NaN or Inf and cannot be quantised",
            where=Where(field=FIELD),
            evidence=broken[:10],
            fixes=["use intact weights: the model answers nonsense without quantisation too"],
        )


def nothing_held() -> ModelError:
    return ModelError(
        "E325",
        "no linear layer of this model can be quantised",
        where=Where(field=FIELD),
        fixes=[f"{FIELD}=none"],
    )
