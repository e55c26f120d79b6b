"""The gradient of low-rank factors by a compiled kernel, in one pass over the wide rows; torch does it elsewhere."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p

import torch
from jaxtyping import Float
from torch import Tensor

from tunesmith.models.native.build import library
from tunesmith.models.native.kernels import multiplies_blocks, require_rows
from tunesmith.models.scratch import scratch

CHUNK = 512  # rows with sums of their own
RANKS = 32  # with more of them torch is as fast


class Fold(ctypes.Structure):
    _fields_ = (
        ("x", c_void_p),
        *((name, c_int64) for name in ("rows", "width")),
        ("low", c_void_p),
        ("ranks", c_int64),
        *((name, c_void_p) for name in ("b", "lowered", "sums")),
    )


def fold(x: Float[Tensor, "T W"], low: Float[Tensor, "T R"]) -> Float[Tensor, "R W"]:
    """low^T x; in fp32 where the kernel forms it."""
    return through_kernel(x, low, None)[0] if serves(x, low) else low.T @ x


def fold_and_lower(
    x: Float[Tensor, "T W"], low: Float[Tensor, "T R"], b: Float[Tensor, "W R"]
) -> tuple[Float[Tensor, "R W"], Float[Tensor, "T R"]]:
    """low^T x, and x b."""
    return through_kernel(x, low, b) if serves(x, low) else (low.T @ x, x @ b)


def serves(x: Tensor, low: Tensor) -> bool:
    fits = x.dtype == torch.bfloat16 and low.shape[1] <= RANKS and x.shape[1] % 32 == 0
    return fits and x.device.type == "cpu" and multiplies_blocks()


def through_kernel(x: Tensor, low: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
    loaded = library()
    assert loaded is not None, "ask `serves` first"
    (rows, width), ranks = x.shape, low.shape[1]
    lowered = torch.empty_like(low)
    require_rows(x, low, *([] if b is None else [b]))
    sums = scratch("sums", (-(-rows // CHUNK), -(-ranks // 16) * 16, width), x, torch.float32)
    places = (None, None) if b is None else (b.data_ptr(), lowered.data_ptr())
    given = Fold(x.data_ptr(), rows, width, low.data_ptr(), ranks, *places, sums.data_ptr())
    loaded.fold(ctypes.byref(given), torch.get_num_threads())
    return sums[:, :ranks].sum(0), lowered
