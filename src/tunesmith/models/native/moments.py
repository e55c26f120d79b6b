"""One step of AdamW with means in 8 bits by a compiled kernel."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p
from dataclasses import dataclass

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor

from tunesmith.models.native.build import library
from tunesmith.models.native.kernels import require_rows

CELLS = 4096


@dataclass(frozen=True, slots=True)
class Codes:
    """A mean in 8 bits: codes, a scale for each 256 of them, what codes stand for, and `cells_of` the nearest codes."""

    codes: Tensor
    scales: Tensor
    values: Tensor
    cells: Tensor


def cells_of(nearest: UInt8[Tensor, " halves"]) -> Int32[Tensor, " cells"]:
    """A table of the codes of all halves, an eighth (or less) of its size: neighbours have two codes at most.

    A cell is the first code, the last one in the next 8 bits, and above them the place where the first one ends.
    """
    cells = nearest.view(CELLS, -1).int()
    first, last = cells[:, 0], cells[:, -1]
    ends = (cells == first[:, None]).sum(1)
    assert bool((cells[:, 1:] != cells[:, :-1]).sum(1).le(1).all()), "a cell has more codes than two"
    return (first | last << 8 | ends << 16).int()


@dataclass(frozen=True, slots=True)
class Rates:
    """Shares of the new gradient in both means, what is left of the squares and the weights, the rate and eps."""

    forget_mean: float
    keep_squares: float
    forget_squares: float
    decay: float
    rate: float
    eps: float


class Mean(ctypes.Structure):
    _fields_ = tuple((name, c_void_p) for name in ("codes", "scales", "values", "cells"))


class Moments(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("gradient", "weight")),
        *((name, Mean) for name in ("mean", "root")),
        ("count", c_int64),
        *((name, c_float) for name in Rates.__dataclass_fields__),
    )


def serves(weight: Tensor) -> bool:
    """Whether the kernel updates such a tensor."""
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()
    return fits and library() is not None


def step(weight: Tensor, gradient: Tensor, mean: Codes, root: Codes, rates: Rates) -> None:
    """Change the weights and both means."""
    loaded = library()
    assert loaded is not None, "ask `serves` first"
    assert (gradient.dtype, gradient.shape) == (torch.float32, weight.shape), "a gradient of another kind"
    given = (mean.codes, mean.scales, mean.values, mean.cells, root.codes, root.scales, root.values, root.cells)
    require_rows(weight, gradient, *given)
    assert len(mean.cells) == len(root.cells) == CELLS, "another table"
    places = (c_void_p(one.data_ptr()) for one in given)
    means = Mean(*(next(places) for _ in range(4))), Mean(*places)
    numbers = (rates.forget_mean, rates.keep_squares, rates.forget_squares, rates.decay, rates.rate, rates.eps)
    of = Moments(gradient.data_ptr(), weight.data_ptr(), *means, weight.numel(), *numbers)
    loaded.moments(ctypes.byref(of), torch.get_num_threads())
