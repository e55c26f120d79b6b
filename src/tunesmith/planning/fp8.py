"""What products with trained weights in 8 bits apply to, take and mean, before a weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from tunesmith.errors import Diagnostic, Fix, Where
from tunesmith.models.fp8_config import MULTIPLE, Fp8Config
from tunesmith.models.inventory import WRITTEN_OUT, Inventory, Trainable, is_linear
from tunesmith.models.products import FP8
from tunesmith.recipe import Recipe

JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # one product each in layers that are written out
Shapes = list[tuple[int, int]]


def trained_linear(inventory: Inventory, trained: Trainable) -> dict[str, tuple[int, int]]:
    """Shapes (outputs, inputs) of the linear layers of decoder layers whose own weights are trained."""
    names = inventory.tensors if trained.resting else trained.shapes
    found = {name: inventory.tensors[name] for name in names if name in inventory.tensors}
    return {name: (info.shape[0], info.shape[1]) for name, info in found.items() if is_linear(name, info)}


def trained_groups(inventory: Inventory, trained: Trainable) -> list[Shapes]:
    """Shapes of the trained linear layers, those together that form one product; none where some of them is frozen."""
    own, joined = trained_linear(inventory, trained), inventory.model_type in WRITTEN_OUT
    groups: dict[str, list[str]] = {}
    for name, info in inventory.tensors.items():
        if is_linear(name, info):
            groups.setdefault(group_of(name) if joined else name, []).append(name)
    return [[own[name] for name in group] for group in groups.values() if all(name in own for name in group)]


def group_of(name: str) -> str:
    """The module, and the product in it that a weight has a part in."""
    module, _, last = name.removesuffix(".weight").rpartition(".")
    return f"{module}.{next(('+'.join(parts) for parts in JOINED if last in parts), last)}"


def passing_bytes(settings: Fp8Config | None, inventory: Inventory, trained: Trainable, tokens: int) -> int:
    """Operands of the largest product while it is formed: in 8 bits, and as fp32 where a GPU is emulated."""
    if settings is None:
        return 0
    taken = [group for group in trained_groups(inventory, trained) if settings.takes(group)]
    sizes = [(sum(outputs for outputs, _ in group), group[0][1]) for group in taken]
    operands = [outputs * inputs + tokens * (outputs + inputs) for outputs, inputs in sizes]
    return (5 if settings.emulate else 1) * max(operands, default=0)


def told_fp8(settings: Fp8Config, inventory: Inventory, trained: Trainable) -> str:
    """Range and precision of the products, and how many layers have them."""
    groups = trained_groups(inventory, trained)
    taken, among = sum(len(group) for group in groups if settings.takes(group)), len(trained_linear(inventory, trained))
    bits = {"e4m3": "4 bits, 2e-3 to 448", "e5m2": "3 bits, 2e-5 to 57,344"}
    kinds = dict.fromkeys(("e4m3", settings.of_gradients))
    scaled = "each row" if settings.scaling == "rowwise" else "each matrix"
    words = " and ".join(f"{kind} ({bits[kind]})" for kind in kinds)
    emulated = ", emulated" if settings.emulate else ""
    return f"{taken} of {among} trained linear layers multiply in {words}, {scaled} scaled{emulated}"


def fp8_problems(
    recipe: Recipe, inventory: Inventory, trained: Trainable, dtype: str, device: str
) -> Iterator[Diagnostic]:
    """Types and layers that fp8 is not for, and a word where it is only emulated."""
    settings = recipe.train.fp8
    if settings is None:
        return
    off = Fix(f"{FP8}=", {FP8: None})
    if dtype == "float16" or (dtype == "float32" and device == "cuda" and not settings.emulate):
        yield _type(dtype, off)
    groups = trained_groups(inventory, trained)
    if not trained_linear(inventory, trained):
        yield _nothing(recipe, device, off)
    elif not any(map(settings.takes, groups)):
        yield _too_small(settings, groups, off)
    elif settings.emulate:
        message = "fp8 is emulated: every product is rounded and then formed in fp32, slower than without"
        yield Diagnostic("W372", message, "warning", Where(field=f"{FP8}.emulate"), fixes=(off,))


def _type(dtype: str, off: Fix) -> Diagnostic:
    key = "model.dtype"
    reasons = {
        "float16": "a loss scale for fp16 and scales for fp8 do not go together",
        "float32": "products in fp8 come out in bf16, and weights in fp32 would gain nothing from their type",
    }
    fix = Fix(f"{key}=bfloat16", {key: "bfloat16"}, effect="with fp32 masters")
    return Diagnostic("E373", reasons[dtype], where=Where(field=key), fixes=(fix, off))


def _nothing(recipe: Recipe, device: str, off: Fix) -> Diagnostic:
    adapter, products = recipe.model.adapter, "model.base_products"
    message = f"{FP8} is for linear layers that are trained themselves, and with {adapter.title} none is"
    fixes = [off]
    if adapter.kept != "model" and not adapter.reads_weights:
        kind = "fp8" if device == "cuda" else "int8"
        effect = "products with frozen weights in 8 bits"
        fixes.append(Fix(f"{products}={kind} {FP8}=", {products: kind, FP8: None}, effect=effect))
    return Diagnostic("E374", message, where=Where(field=FP8), fixes=tuple(fixes))


def _too_small(settings: Fp8Config, groups: list[Shapes], off: Fix) -> Diagnostic:
    key, fixes = f"{FP8}.smallest", [off]
    sizes = {min(sum(outputs for outputs, _ in group), group[0][1]) for group in groups}
    for size in sorted(sizes, reverse=True):
        if size >= MULTIPLE and any(map(settings.model_copy(update={"smallest": size}).takes, groups)):
            fixes.append(Fix(f"{key}={size}", {key: size}, effect="some layers, likely slower than in bf16"))
            break
    message = f"no trained linear layer has {settings.smallest:,} inputs and outputs, all in sixteens"
    evidence = (f"the largest has {max(sizes):,}",) if sizes else ("layers that form one product are trained in part",)
    return Diagnostic("E375", message, where=Where(field=key), evidence=evidence, fixes=tuple(fixes))
