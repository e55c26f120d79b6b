"""Bottleneck adapters: h + s W_up f(W_down h + b_down) + s b_up inside the residual branch of attention or MLP.

Sources: arXiv:1902.00751 section 2.1 (behind both), arXiv:2005.00247 (behind the MLP), arXiv:2110.04366 section 3.2
(beside the MLP). The adapter stands behind the linear layer that ends a half of the decoder layer, so where a family
norms the half's result (Gemma 2 and 3, OLMo 2), that norm comes after it. W_up begins at 0: step 0 is the base.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from tunesmith.errors import Fix, ModelError, Where
from tunesmith.models.adapters.base import LAYER
from tunesmith.models.bottleneck_config import BottleneckConfig
from tunesmith.models.heads import head_modules

FUNCTIONS = {"gelu": functional.gelu, "relu": functional.relu, "silu": functional.silu}


class Bottleneck(nn.Module):
    """A linear layer with a bottleneck behind it, or beside the MLP that it ends; `base_layer` is what it was."""

    def __init__(self, linear: nn.Linear, settings: BottleneckConfig) -> None:
        super().__init__()
        states = linear.out_features
        place = {"device": linear.weight.device, "dtype": torch.float32}
        self.base_layer = linear
        self.bottleneck_down = nn.Linear(states, settings.width(states), **place)
        self.bottleneck_up = nn.Linear(settings.width(states), states, **place)
        nn.init.zeros_(self.bottleneck_down.bias)
        nn.init.zeros_(self.bottleneck_up.weight)
        nn.init.zeros_(self.bottleneck_up.bias)
        self.function, self.scale = FUNCTIONS[settings.activation], settings.scale
        self.beside = settings.kind == "parallel"
        self.given: Tensor | None = None  # what goes into the MLP that is at work
        self.enabled = True

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        out, given = self.base_layer(x), self.given
        self.given = None
        if not self.enabled:
            return out
        read = given if self.beside else out
        assert read is not None, "the hook before the MLP has run"
        middle = self.function(linear_as(self.bottleneck_down, read))
        return torch.add(out, linear_as(self.bottleneck_up, middle), alpha=self.scale)

    def listen(self, mlp: nn.Module) -> None:
        """Read what goes into the MLP from now on."""

        def keep(module: nn.Module, positional: tuple, named: dict) -> None:
            self.given = positional[0] if positional else named["hidden_states"]

        mlp.register_forward_pre_hook(keep, with_kwargs=True)


def linear_as(layer: nn.Linear, x: Tensor) -> Tensor:
    """The product in the type of x; the weights themselves stay fp32."""
    return functional.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


class BottleneckModel(nn.Module):
    """A model with bottleneck adapters in its layers; to other code it is what PEFT's model is."""

    def __init__(self, model: PreTrainedModel, settings: BottleneckConfig) -> None:
        super().__init__()
        self.base_model = model
        self.settings = settings

    def forward(self, input_ids: Tensor, use_cache: bool | None = None) -> object:
        return self.base_model(input_ids=input_ids, use_cache=use_cache)

    def get_base_model(self) -> PreTrainedModel:
        return self.base_model

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Meanwhile the model is the base."""
        places = [module for module in self.modules() if isinstance(module, Bottleneck)]
        for place in places:
            place.enabled = False
        try:
            yield
        finally:
            for place in places:
                place.enabled = True


def attach_bottleneck(model: PreTrainedModel, settings: BottleneckConfig) -> BottleneckModel:
    """Frozen weights with adapters to train, and heads of values; ModelError E350 where no place for one is known."""
    for name in places_of(model, settings):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear), "the layers at these places are linear"
        adapter = Bottleneck(linear, settings)
        if settings.kind == "parallel":
            adapter.listen(model.get_submodule(mlp_around(name)))
        model.set_submodule(name, adapter)
    for name in head_modules(model):
        model.get_submodule(name).requires_grad_(True)
    return BottleneckModel(model, settings)


def places_of(model: nn.Module, settings: BottleneckConfig) -> list[str]:
    found = [name for name, _ in model.named_modules() if settings.changes(name)]
    if not found:
        raise no_place(str(type(model).__name__))
    numbers = {name: int(match[1]) for name in found if (match := LAYER.search(name))}
    first = 1 + max(numbers.values()) - settings.last if settings.last else 0
    return [name for name in found if numbers[name] >= first]


def mlp_around(name: str) -> str:
    """The module whose input is the MLP's: BERT's is no parent of the linear layer that ends it."""
    parent = name.rpartition(".")[0]
    return f"{parent.removesuffix('output')}intermediate" if parent.endswith(".output") else parent


def no_place(kind: str) -> ModelError:
    key = "model.adapter.method"
    return ModelError(
        "E350",
        f"where bottleneck adapters belong in a {kind} is not known",
        where=Where(field=key),
        fixes=[Fix(f"{key}=lora", {key: "lora"})],
    )
