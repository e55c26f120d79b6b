"""What the types of weights and masters mean for range, precision and memory, and where a choice of them is in vain."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tunesmith.errors import Diagnostic, Fix, Where
from tunesmith.models.adapter_config import PlacedConfig
from tunesmith.models.inventory import Inventory, Trainable
from tunesmith.models.native.decode import serves
from tunesmith.planning.fp8 import told_fp8
from tunesmith.planning.memory import MASTERS, WIDTH, state_bytes
from tunesmith.recipe import Recipe

WEIGHTS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ROUNDING = "train.optimizer.rounding"
OVERFLOWING = ("gemma", "t5", "mt5", "umt5")  # beginnings of model types that were trained in bf16 alone
SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
RANGE = {"float32": "range of fp32", "bfloat16": "range of fp32", "float16": "range up to 65,504"}
BITS = {"float32": 24, "bfloat16": 8, "float16": 11}
ARRIVE = {
    "masters": "and fp32 masters",
    "stochastic": "alone, rounded by chance",
    "kahan": "with what rounding left (16 bits together)",
}


def trains_below_fp32(recipe: Recipe, trained: Trainable, dtype: str) -> bool:
    """Whether what is trained is of a type below fp32, with `dtype` that of the model."""
    adapter = recipe.model.adapter
    wide = adapter.wide if isinstance(adapter, PlacedConfig) else adapter.kept == "adapter"  # prompts are in fp32
    in_fp32 = wide and not trained.base
    return WIDTH.get(dtype, 2) < 4 and not in_fp32


def told_precision(recipe: Recipe, inventory: Inventory, trained: Trainable, dtype: str) -> str:
    """One line: types, range, bits of precision, and bytes for each trained parameter."""
    below, optimizer = trains_below_fp32(recipe, trained, dtype), recipe.train.optimizer
    name = SHORT.get(dtype, "bf16")
    if below:
        words = f"{name} weights {ARRIVE[optimizer.rounding]}"
    else:
        words = "fp32 weights" if dtype == "float32" else f"{name} weights, fp32 adapters"
    products = f"{RANGE.get(dtype, RANGE['bfloat16'])}, {BITS.get(dtype, 8)} bits in products"
    size = bytes_per_parameter(recipe, inventory, trained, dtype)
    eight = "" if recipe.train.fp8 is None else f"; {told_fp8(recipe.train.fp8, inventory, trained)}"
    return f"{words}: {products}; {size:.3g} bytes per trained parameter{eight}"


def bytes_per_parameter(recipe: Recipe, inventory: Inventory, trained: Trainable, dtype: str) -> float:
    """Weight, fp32 gradient (none where it is used up in the backward pass), master or compensation, and states."""
    optimizer = recipe.train.optimizer
    states = state_bytes(trained, optimizer.for_heads(inventory.head_dim)) / max(1, trained.total)
    below = trains_below_fp32(recipe, trained, dtype)
    weight, beside = (2, MASTERS[optimizer.rounding]) if below else (4, 0)
    return weight + beside + (0 if optimizer.in_backward else 4) + states


def product_problems(recipe: Recipe, dtype: str, device: str) -> Iterator[Diagnostic]:
    """E428: answers in 8 bits where nothing multiplies them."""
    asked = {"evaluate.products": recipe.evaluate.products}
    if recipe.online is not None:
        asked["online.sampling.products"] = recipe.online.sampling.products
    if device == "cpu" and serves(WEIGHTS.get(dtype, torch.bfloat16)):
        return
    for key, products in asked.items():
        if products == "int8":
            where = "a GPU" if device != "cpu" else f"weights in {dtype} on this processor"
            message = f"answers in 8 bits are made from bf16 weights on a CPU that multiplies them, not on {where}"
            yield Diagnostic("E428", message, where=Where(field=key), fixes=(Fix(f"{key}=packed", {key: "packed"}),))


def precision_problems(recipe: Recipe, inventory: Inventory, trained: Trainable, dtype: str) -> Iterator[Diagnostic]:
    """Settings of precision that are in vain, or known to go wrong with the model."""
    if dtype == "float16" and inventory.model_type.startswith(OVERFLOWING):
        message = f"models of type {inventory.model_type} overflow in fp16: their layers hold numbers above 65,504"
        fix = Fix("model.dtype=bfloat16", {"model.dtype": "bfloat16"})
        yield Diagnostic("W371", message, "warning", Where(field="model.dtype"), fixes=(fix,))
    yield from _vain_rounding(recipe, trained, dtype)


def _vain_rounding(recipe: Recipe, trained: Trainable, dtype: str) -> Iterator[Diagnostic]:
    rounding = recipe.train.optimizer.rounding
    if rounding == "masters" or (trains_below_fp32(recipe, trained, dtype) and dtype != "float16"):
        return
    if dtype == "float16":
        message = f"{ROUNDING}={rounding} is for bf16; weights in fp16 are too coarse without masters, and have them"
        code, fix = "E370", Fix(f"{ROUNDING}=masters", {ROUNDING: "masters"})
        yield Diagnostic(code, message, where=Where(field=ROUNDING), fixes=(fix,))
        return
    message = f"{ROUNDING}={rounding} changes nothing: all that is trained is in fp32"
    fix = Fix(f"{ROUNDING}=masters", {ROUNDING: "masters"}, effect="the same updates")
    yield Diagnostic("W370", message, "warning", Where(field=ROUNDING), fixes=(fix,))
