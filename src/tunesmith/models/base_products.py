"""Put the products with frozen weights in 8 bits, in every decoder layer of a model that is ready to train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from tunesmith.errors import Fix, UsageError, Where
from tunesmith.models.adapters import LAYER
from tunesmith.models.eight_bit import Linear8, join
from tunesmith.models.forward import base_model
from tunesmith.models.layer.module import PROJECTIONS, FastLayer
from tunesmith.models.products import FIELD, Products


def use_products(model: nn.Module, products: Products) -> int:
    """Replace frozen linear layers, those that read the same rows together; returns how many products there are now.

    Raises UsageError E097 when no linear layer of a decoder layer is frozen.
    """
    if products == "exact":
        return 0
    count = 0
    for group in list(groups(model)):
        bases = [base_of(model.get_submodule(name)) for name in group]
        frozen = [base for base in bases if base is not None and not base.weight.requires_grad]
        if len(frozen) != len(group) or any(base.bias is not None and base.bias.requires_grad for base in frozen):
            continue
        for name, layer in zip(group, join(frozen, products), strict=True):
            put_base(model, name, layer)
        count += 1
    if count == 0:
        raise UsageError(
            "E097",
            f"{FIELD}={products} is for frozen weights, and every weight is trained",
            where=Where(field=FIELD),
            fixes=[
                Fix("model.adapter.method=lora", {"model.adapter.method": "lora"}),
                Fix(f"{FIELD}=exact", {FIELD: "exact"}),
            ],
        )
    return count


def exact_again(model: nn.Module, base: nn.Module) -> None:
    """Put the exact weights of `base`, a model as it was loaded, in place of all products in 8 bits."""
    inside = base_model(model)
    for name, module in list(inside.named_modules()):
        if isinstance(module, Linear8):
            inside.set_submodule(name, base.get_submodule(name.removesuffix(".base_layer")))


def groups(model: nn.Module) -> Iterator[Sequence[str]]:
    """Names of the linear layers of decoder layers; together where our own layer forms one product of them."""
    taken: set[str] = set()  # what is in a group, or inside an adapter's module
    for name, module in model.named_modules():
        if isinstance(module, FastLayer):
            for names in PROJECTIONS.values():
                group = [f"{name}.{own}" for own in names]
                taken.update(group)
                yield group
        elif name.rpartition(".")[0] in taken:
            taken.add(name)
        elif name not in taken and base_of(module) is not None and LAYER.search(name):
            taken.add(name)
            yield [name]


def base_of(module: nn.Module) -> nn.Linear | None:
    """The linear layer itself, or the one below an adapter."""
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return base if type(base) is nn.Linear else None


def put_base(model: nn.Module, name: str, layer: nn.Module) -> None:
    adapted = isinstance(model.get_submodule(name), BaseTunerLayer)
    model.set_submodule(f"{name}.base_layer" if adapted else name, layer)
