"""What goes with a base in few bits, and what reads or trains the weights that it does not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tunesmith.configuring.layers import Origin
from tunesmith.models.loftq_config import LoftqConfig
from tunesmith.models.prompt_config import LlamaAdapterConfig
from tunesmith.models.quantization_config import Unquantized
from tunesmith.recipe.clash import Clash
from tunesmith.recipe.settings import Recipe

FIELD, METHOD, PRODUCTS = "model.quantization.name", "model.adapter.method", "model.base_products"


def quantized_base(recipe: Recipe, origins: Mapping[str, Origin]) -> Iterator[Clash]:
    """A base in few bits is frozen, and is computed with as it is."""
    model = recipe.model
    adapter, held = model.adapter, model.quantization
    if isinstance(held, Unquantized):
        if isinstance(adapter, LoftqConfig) and model.adapter_path is None:
            message = "LoftQ begins with what quantising the base takes away, and the base is not quantised"
            yield Clash(message, (METHOD, FIELD), {FIELD: "nf4"}, "E322", f"or {METHOD}=lora")
        return
    if adapter.kept == "model":
        message = f"weights in {held.told()} are frozen, and {adapter.title} trains and saves the model itself"
        yield Clash(message, (FIELD, METHOD), {METHOD: "lora"}, "E320", f"or {FIELD}=none")
    if isinstance(adapter, LlamaAdapterConfig):
        message = f"adaption prompts ask each layer for its parameters, and weights in {held.told()} are none"
        yield Clash(message, (METHOD, FIELD), {METHOD: "lora"}, "E329", f"or {FIELD}=none")
    if model.base_products != "exact":
        message = f"products in {model.base_products} hold weights of their own: a base in {held.told()} saves nothing"
        yield Clash(message, (PRODUCTS, FIELD), {PRODUCTS: "exact"}, "E321")
    if model.merged_adapters:
        message = f"adapters are merged into weights in full, and a base in {held.told()} has none"
        yield Clash(message, ("model.merged_adapters", FIELD), {FIELD: "none"}, "E328")
