"""Put the products with trained weights in float8, in the decoder layers of a model, and take them out again."""

from __future__ import annotations

from torch import nn

from tunesmith.models.base_products import groups
from tunesmith.models.fp8 import Fp8Linear, Products8
from tunesmith.models.fp8_config import Fp8Config


def use_fp8(model: nn.Module, settings: Fp8Config | None) -> int:
    """Replace trained linear layers that are large enough, and those beside them; returns how many there are now.

    Embeddings, the head, norms, routers of experts that are no linear layer, and adapters are as they were.
    """
    if settings is None:
        return 0
    count = 0
    for group in list(groups(model)):
        layers = [model.get_submodule(name) for name in group]
        plain = [layer for layer in layers if type(layer) is nn.Linear and layer.weight.requires_grad]
        if len(plain) != len(group) or not settings.takes([(each.out_features, each.in_features) for each in plain]):
            continue
        for name, layer in zip(group, plain, strict=True):
            model.set_submodule(name, Fp8Linear(layer, Products8(settings)))
        count += len(group)
    return count


def exact_products(model: nn.Module) -> None:
    """Plain linear layers again, with the parameters as they are now."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Fp8Linear):
            model.set_submodule(name, module.exact())
