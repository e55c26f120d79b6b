"""Linear layers that read the same rows, as one matmul; LoRA inside, gradients written out.

Shapes: T rows, I inputs, O outputs of all parts side by side, R ranks of all parts side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import TypeVar, TypeVarTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tunesmith.models.eight_bit import BothWays, Linear8
from tunesmith.models.fp8 import Fp8Linear, Products8
from tunesmith.models.lora import FastLoraLinear
from tunesmith.models.native.low_rank import fold, fold_and_lower
from tunesmith.models.native.product import rows_by_inputs, rows_by_outputs
from tunesmith.models.quantized.linear import QuantizedLinear
from tunesmith.models.quantized.packed import Packed
from tunesmith.models.scratch import scratch
from tunesmith.track.clock import Mark

Result = TypeVar("Result")
Given = TypeVarTuple("Given")


@dataclass(frozen=True, slots=True)
class LowRank:
    """One part's s B A; the masters may be fp32 while the products run in the type of the rows."""

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class Part:
    """One linear layer of a projection."""

    width: int
    weight: Tensor | None  # None where there are products in 8 bits instead, or the weight is packed
    bias: Tensor | None
    low_rank: LowRank | None
    eight: BothWays | None = None  # of all parts of the projection
    packed: Packed | None = None  # expanded by each product
    fp8: Products8 | None = None  # of all parts of the projection, with weights as they are just then

    def tensors(self) -> Iterator[Tensor]:
        if self.weight is not None:
            yield self.weight
        if self.bias is not None:
            yield self.bias
        if self.low_rank is not None:
            yield from (self.low_rank.a, self.low_rank.b)


Gradients = dict[Tensor, Tensor]  # of the parameters that want one


def part_of(module: nn.Module) -> Part | None:
    """The linear layer, as PEFT has it now; None for anything that is more than W x + bias + s B A x."""
    if not isinstance(module, FastLoraLinear):
        return plain_part_of(module)
    if module.merged:
        return None
    plain = plain_part_of(module.get_base_layer())
    if plain is None:
        return None
    if module.disable_adapters:
        return plain
    if not module.is_fast(module.active_adapters):
        return None
    (name,) = module.active_adapters
    a, b = (module.get_parameter(f"{factor}.{name}.weight") for factor in ("lora_A", "lora_B"))
    return replace(plain, low_rank=LowRank(a, b, module.scaling[name]))


def plain_part_of(module: nn.Module) -> Part | None:
    if isinstance(module, Linear8):
        return Part(module.out_features, None, module.bias, None, module.weights)
    if isinstance(module, QuantizedLinear):
        return Part(module.out_features, None, module.bias, None, packed=module.packed)
    if isinstance(module, Fp8Linear):
        return Part(module.out_features, module.weight, module.bias, None, fp8=module.products)
    if type(module) is nn.Linear:
        return Part(module.out_features, module.weight, module.bias, None)
    return None


def marked(method: Callable[[Projection, *Given], Result]) -> Callable[[Projection, *Given], Result]:
    """The method, with its time charged to what the projection is in its layer."""

    @wraps(method)
    def timed(self: Projection, *given: *Given) -> Result:
        with self.mark:
            return method(self, *given)

    return timed


@dataclass(frozen=True, slots=True)
class Projection:
    """Parts side by side; `mark` names them in a profile."""

    parts: tuple[Part, ...]
    mark: Mark

    @property
    def width(self) -> int:
        return sum(part.width for part in self.parts)

    @marked
    def apply(self, x: Float[Tensor, "T I"], out: Float[Tensor, "T O"]) -> Float[Tensor, "T R"] | None:
        """out = x W^T + bias + s (x A^T) B^T; returns x A^T, which the gradient needs."""
        factors = self.factors(x.dtype)
        low = None if factors is None else x @ factors.a.T
        if (eight := self.parts[0].eight) is not None:
            eight.product(x, out)
        elif (fp8 := self.parts[0].fp8) is not None:
            fp8.product(x, self.weight(x), out)
        else:
            rows_by_outputs(x, self.weight(x), out, low, None if factors is None else factors.b)
            factors = None
        if any(part.bias is not None for part in self.parts):
            out += torch.cat([x.new_zeros(part.width) if part.bias is None else part.bias for part in self.parts])
        if factors is not None and low is not None:
            out.addmm_(low, factors.b.T)
        return low

    def weight(self, like: Tensor) -> Float[Tensor, "O I"]:
        """Those of all parts for products with `like`; of packed ones until the next call."""
        packed = next((part.packed for part in self.parts if part.packed is not None), None)
        if packed is None:
            return side_by_side([part.weight for part in self.parts if part.weight is not None])
        whole = scratch("expanded", (self.width, packed.shape[1]), like)
        for part, rows in zip(self.parts, whole.split([part.width for part in self.parts]), strict=True):
            if part.packed is not None:
                part.packed.expand(rows)
            elif part.weight is not None:
                rows.copy_(part.weight)
        return whole

    @property
    def has_low_rank(self) -> bool:
        return any(part.low_rank is not None for part in self.parts)

    def low_rows(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T R"] | None:
        """x A^T alone, as `apply` returns it."""
        factors = self.factors(x.dtype)
        return None if factors is None else x @ factors.a.T

    def factors(self, dtype: torch.dtype) -> Factors | None:
        """A of all parts one below the other, and s B of each part in its own rows and columns."""
        found = [part.low_rank for part in self.parts if part.low_rank is not None]
        if not found:
            return None
        if len(self.parts) == 1:
            return Factors(found[0].a.to(dtype), (found[0].b * found[0].scale).to(dtype))
        a = torch.cat([each.a.to(dtype) for each in found])
        b = a.new_zeros(self.width, len(a))
        for each, (rows, ranks) in zip(found, self.places(), strict=True):
            torch.mul(each.b, each.scale, out=b[rows, ranks])
        return Factors(a, b)

    def places(self) -> Iterator[tuple[slice, slice]]:
        """Outputs and ranks of every part with a low rank."""
        row = rank = 0
        for part in self.parts:
            if part.low_rank is not None:
                yield slice(row, row + part.width), slice(rank, rank + len(part.low_rank.a))
                rank += len(part.low_rank.a)
            row += part.width

    @marked
    def slope(self, grad: Float[Tensor, "T O"], low: Float[Tensor, "T R"] | None) -> Slope:
        """`low` is what `apply` returned."""
        factors = self.factors(grad.dtype)
        if factors is None or low is None:
            return Slope(self, grad)
        of_b, of_low = fold_and_lower(grad, low, factors.b)
        return Slope(self, grad, factors.a, of_low, of_b)


@dataclass(frozen=True, slots=True)
class Factors:
    """A and s B in the type of the rows."""

    a: Float[Tensor, "R I"]
    b: Float[Tensor, "O R"]


@dataclass(frozen=True, slots=True)
class Slope:
    """The gradient of what a projection gave, on its way to rows and parameters."""

    projection: Projection
    grad: Float[Tensor, "T O"]
    a: Float[Tensor, "R I"] | None = None
    of_low: Float[Tensor, "T R"] | None = None  # the gradient of x A^T
    of_b: Float[Tensor, "R O"] | None = None  # that of B, transposed and not scaled; between parts it means nothing

    def of_rows(self, out: Float[Tensor, "T I"]) -> Float[Tensor, "T I"]:
        """out = the gradient of the rows that went in."""
        with self.projection.mark:
            if (eight := self.projection.parts[0].eight) is not None:
                eight.product_backward(self.grad, out)
            elif (fp8 := self.projection.parts[0].fp8) is not None:
                fp8.of_rows(self.grad, self.projection.weight(self.grad), out)
            else:
                rows_by_inputs(self.grad, self.projection.weight(self.grad), out, self.of_low, self.a)
                return out
            if self.a is None or self.of_low is None:
                return out
            return out.addmm_(self.of_low, self.a)

    def of_parameters(self, x: Float[Tensor, "T I"]) -> Gradients:
        """Gradients of the parameters that want one, from the rows `x` that went in."""
        with self.projection.mark:
            gradients = self.of_weights(x)
            if self.of_low is None or self.of_b is None:
                return gradients
            found = [part.low_rank for part in self.projection.parts if part.low_rank is not None]
            of_a = fold(x, self.of_low) if any(each.a.requires_grad for each in found) else None
            for each, (rows, ranks) in zip(found, self.projection.places(), strict=True):
                if of_a is not None and each.a.requires_grad:
                    gradients[each.a] = of_a[ranks].to(each.a.dtype)
                if each.b.requires_grad:
                    gradients[each.b] = self.of_b[ranks, rows].T.to(each.b.dtype).contiguous() * each.scale
            return gradients

    def of_weights(self, x: Float[Tensor, "T I"]) -> Gradients:
        gradients: Gradients = {}
        row, fp8 = 0, self.projection.parts[0].fp8
        wanted = any(part.weight is not None and part.weight.requires_grad for part in self.projection.parts)
        joined = None if fp8 is None or not wanted else fp8.of_weight(self.grad, x)
        for part in self.projection.parts:
            rows = slice(row, row + part.width)
            own, row = self.grad[:, rows], rows.stop
            if part.weight is not None and part.weight.requires_grad:
                gradients[part.weight] = own.T @ x if joined is None else joined[rows]
            if part.bias is not None and part.bias.requires_grad:
                gradients[part.bias] = own.sum(0, dtype=torch.float32).to(part.bias.dtype)
        return gradients


def side_by_side(weights: Sequence[Tensor]) -> Float[Tensor, "O I"]:
    """The weights as one matrix without a copy; those that do not lie end to end yet are moved there, once.

    The parameters stay what they are, under their names; only their memory is shared in a row.
    """
    first = weights[0]
    if len(weights) == 1:
        return first
    place = first.data_ptr()
    for weight in weights:
        if weight.data_ptr() != place or not weight.is_contiguous() or weight.dtype != first.dtype:
            return lay_side_by_side(weights)
        place += weight.numel() * weight.element_size()
    if first.untyped_storage().data_ptr() != weights[-1].untyped_storage().data_ptr():
        return lay_side_by_side(weights)
    return first.detach().as_strided((sum(map(len, weights)), first.shape[1]), first.stride())


@torch.no_grad()
def lay_side_by_side(weights: Sequence[Tensor]) -> Float[Tensor, "O I"]:
    whole = torch.cat([weight.detach() for weight in weights])
    for weight, own in zip(weights, whole.split([len(weight) for weight in weights]), strict=True):
        weight.data = own
    return whole
