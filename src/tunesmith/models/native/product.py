"""Products of many rows with a matrix: by a compiled kernel in bf16, by oneDNN in fp32, by torch elsewhere."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from tunesmith.models.native.build import library
from tunesmith.models.native.kernels import has_products, require_alike, require_rows

FEWEST = 16  # rows below which torch does it
WIDE_ROWS, WIDE = 64, 2**17  # rows, and figures of a matrix, from which oneDNN's products in fp32 pay
BLOCK = 1024  # rows that oneDNN multiplies at once


class Product(ctypes.Structure):
    _fields_ = (
        ("x", c_void_p),
        *((name, c_int64) for name in ("x_step", "rows", "inner")),
        ("matrix", c_void_p),
        *((name, c_int64) for name in ("columns", "down")),
        *((name, c_void_p) for name in ("low", "factor")),
        ("ranks", c_int64),
        ("out", c_void_p),
    )


def rows_by_outputs(
    x: Float[Tensor, "T I"],
    weight: Float[Tensor, "O I"],
    out: Float[Tensor, "T O"],
    low: Float[Tensor, "T R"] | None = None,
    factor: Float[Tensor, "O R"] | None = None,
) -> None:
    """out = x W^T + low factor^T."""
    if serves(x, weight, len(weight), low):
        through_kernel(x, weight, out, low, factor, down=False)
        return
    if is_wide(x, weight):
        by_onednn(x, weight, out)
    else:
        torch.mm(x, weight.T, out=out)
    if low is not None and factor is not None:
        out.addmm_(low, factor.T)


def rows_by_inputs(
    x: Float[Tensor, "T O"],
    weight: Float[Tensor, "O I"],
    out: Float[Tensor, "T I"],
    low: Float[Tensor, "T R"] | None = None,
    factor: Float[Tensor, "R I"] | None = None,
) -> None:
    """out = x W + low factor."""
    if serves(x, weight, weight.shape[1], low):
        through_kernel(x, weight, out, low, factor, down=True)
        return
    if is_wide(x, weight):
        by_onednn(x, weight.T, out)
    else:
        torch.mm(x, weight, out=out)
    if low is not None and factor is not None:
        out.addmm_(low, factor)


def serves(x: Tensor, weight: Tensor, columns: int, low: Tensor | None) -> bool:
    """Whether the kernel forms this product: in bf16, of rows enough, with sizes that fill its vectors."""
    if x.device.type != "cpu" or x.dtype != torch.bfloat16 or weight.dtype != x.dtype or len(x) < FEWEST:
        return False
    fits = columns % 16 == 0 and x.shape[1] % 2 == 0 and (low is None or low.shape[1] % 2 == 0)
    return fits and x.stride(1) == 1 and weight.is_contiguous() and has_products()


def is_wide(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN forms this product: in fp32 and AVX-512, where torch's own BLAS has half its speed beside Intel.

    Both add in fp32; their last digits differ.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != x.dtype:
        return False
    return len(x) >= WIDE_ROWS and weight.numel() >= WIDE and has_onednn()


@cache
def has_onednn() -> bool:
    """Asked once: whether torch has oneDNN, and the processor the vectors that it is faster with."""
    wide = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # not part of torch's public interface


def by_onednn(x: Float[Tensor, "T I"], weight: Float[Tensor, "O I"], out: Float[Tensor, "T O"]) -> None:
    """out = x W^T, without a gradient; oneDNN gives memory of its own, so some rows at a time."""
    for rows, place in zip(x.split(BLOCK), out.split(BLOCK), strict=True):
        place.copy_(torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], ""))


def through_kernel(
    x: Tensor, weight: Tensor, out: Tensor, low: Tensor | None, factor: Tensor | None, *, down: bool
) -> None:
    loaded = library()
    assert loaded is not None, "ask `serves` first"
    rows, inner, columns, ranks = *x.shape, out.shape[1], 0
    assert len(out) == rows
    assert weight.shape == ((inner, columns) if down else (columns, inner))
    require_rows(out)
    require_alike(x, weight, out)
    places: tuple[int | None, int | None] = None, None
    if low is not None and factor is not None:
        ranks = low.shape[1]
        assert len(low) == rows
        assert factor.shape == ((ranks, columns) if down else (columns, ranks))
        require_rows(low, factor)
        require_alike(x, low, factor)
        places = low.data_ptr(), factor.data_ptr()
    sizes = x.data_ptr(), x.stride(0), rows, inner, weight.data_ptr(), columns, int(down)
    loaded.product(ctypes.byref(Product(*sizes, *places, ranks, out.data_ptr())), torch.get_num_threads())
