"""The compiled kernels as functions of tensors; `kernels_for` says whether they serve a tensor."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from tunesmith.models.native.build import library

NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}
KERNELS = ("norm", "norm_backward", "rotate", "gate", "gate_backward", "softmax", "softmax_backward", "powers")
KERNELS += ("quantize", "products")


class Kernels:
    """The kernels of one type of states. Every result is written to tensors that the caller gives."""

    def __init__(self, loaded: ctypes.CDLL, name: str) -> None:
        self.functions = {kernel: loaded[f"{kernel}_{name}"] for kernel in KERNELS}
        for function in self.functions.values():
            function.restype = None

    def call(self, kernel: str, *given: Tensor | int | float | None) -> None:
        self.functions[kernel](*map(as_argument, given), c_int(torch.get_num_threads()))

    def norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor, factor: Tensor) -> None:
        """out = x / sqrt(mean(x^2) + eps) * weight in rows of the last dimension; factor: 1 / sqrt(...), in fp32."""
        require_alike(x, out)
        outer, inner, width = rows_of(x)
        self.call("norm", x, x.stride(0), weight, eps, out, out.stride(0), factor, outer, inner, width)

    def norm_backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, factor: Tensor, beside: Tensor | None, out: Tensor
    ) -> None:
        """out = the gradient of x, plus `beside`."""
        require_alike(x, grad, out, *([] if beside is None else [beside]))
        outer, inner, width = rows_of(x)
        self.call(
            "norm_backward", grad, grad.stride(0), x, x.stride(0), weight, factor, beside, out, outer, inner, width
        )

    def rotate(
        self, x: Float[Tensor, "K T G E"], cos: Tensor, sin: Tensor, out: Float[Tensor, "K T G E"], sign: float
    ) -> None:
        require_alike(x, cos, sin, out)
        keys, rows, group, width = x.shape
        places = x.stride(0), x.stride(1), cos, sin, out, out.stride(0), out.stride(1)
        self.call("rotate", x, *places, keys, rows, group, width, sign)

    def gate(self, both: Float[Tensor, "T 2I"], out: Float[Tensor, "T I"]) -> None:
        require_alike(both, out)
        self.call("gate", both, out, *out.shape)

    def gate_backward(self, grad: Tensor, both: Tensor, grad_both: Tensor, product: Tensor) -> None:
        require_alike(grad, both, grad_both, product)
        self.call("gate_backward", grad, both, grad_both, product, *grad.shape)

    def softmax(self, scores: Float[Tensor, "B RG L"], bias: Float[Tensor, "N R C"]) -> None:
        """scores = softmax(scores + bias), the bias that of unit b modulo N, for the last C keys."""
        require_alike(scores, bias)
        units, rows, masked = bias.shape
        batches, height, width = scores.shape
        self.call("softmax", scores, bias, batches, units, rows, height // rows, width, masked)

    def softmax_backward(self, slopes: Tensor, chances: Tensor) -> None:
        """slopes = the gradient in front of the softmax, from that behind it."""
        require_alike(slopes, chances)
        self.call("softmax_backward", slopes, chances, chances.numel() // chances.shape[-1], chances.shape[-1])

    def powers(self, logits: Float[Tensor, "R V"], largest: Tensor, sums: Tensor, worth: Tensor) -> None:
        """logits = exp(logits - largest), where `largest` (R 1, fp32) grows to what these logits hold.

        worth = exp(largest before - largest); `sums` of powers are worth that much, and those of `logits` are added.
        """
        require_rows(logits, largest, sums, worth)
        self.call("powers", logits, largest, sums, worth, *logits.shape)

    def quantize(self, x: Float[Tensor, "T I"], result: Int8[Tensor, "T K"], scale: Float[Tensor, "T 1"]) -> None:
        """result = x / scale to the nearest whole number, where scale is the largest figure of a row / 127, in fp32.

        Columns and rows of `result` beyond those of x are left as they are.
        """
        require_rows(x, result)
        self.call("quantize", x, result, result.stride(0), scale, *x.shape)

    def products(self, x: Int8[Tensor, "S K"], x_scale: Tensor, weights: Tensor, scale: Tensor, out: Tensor) -> None:
        """out (T, O) = x_scale x W^T scale; W in the order of `Int8Matrix`. Only where `multiplies_blocks`."""
        require_rows(x, out)
        assert len(x) == -(-len(out) // 32) * 32, "rows are read in blocks of 32"
        assert weights.numel() == len(scale) * x.shape[1], "weights of another depth"
        self.call("products", x, x.stride(0), x_scale, weights, scale, out, *out.shape)


def multiplies_blocks() -> bool:
    """Whether the kernels multiply blocks of bf16 and of 8-bit numbers: in tiles of AMX, or in vectors of AVX-512."""
    loaded = library()
    return loaded is not None and bool(loaded.multiplies_blocks())


def has_products() -> bool:
    """Whether the kernels multiply many rows in bf16: in vectors of AVX-512; in tiles of AMX torch is as fast."""
    loaded = library()
    return loaded is not None and bool(loaded.has_products())


def require_rows(*states: Tensor) -> None:
    assert all(each.is_contiguous() for each in states), "rows must follow each other"


def require_alike(*states: Tensor) -> None:
    """The kernels see addresses alone: a tensor of another type or with gaps in its rows would be read as nonsense."""
    assert all(each.dtype == states[0].dtype and each.stride(-1) == 1 for each in states), "mixed types or split rows"


def as_argument(value: Tensor | int | float | None) -> c_void_p | c_int64 | c_float:
    if value is None:
        return c_void_p(None)
    if isinstance(value, Tensor):
        return c_void_p(value.data_ptr())
    return c_int64(value) if isinstance(value, int) else c_float(value)


def rows_of(x: Float[Tensor, "*rows D"]) -> tuple[int, int, int]:
    """Outer rows, rows that follow each other within one, and their width."""
    assert x.stride(-1) == 1
    assert x.dim() == 2 or x.stride(1) == x.shape[2], "rows within a row must follow each other"
    return len(x), 1 if x.dim() == 2 else x.shape[1], x.shape[-1]


LOADED: dict[torch.dtype, Kernels] = {}


def kernels_for(states: Tensor) -> Kernels | None:
    """The kernels for tensors like this one; None where torch has to do."""
    if states.device.type != "cpu" or states.dtype not in NAMES:
        return None
    loaded = library()
    if loaded is None:
        return None
    if states.dtype not in LOADED:
        LOADED[states.dtype] = Kernels(loaded, NAMES[states.dtype])
    return LOADED[states.dtype]
