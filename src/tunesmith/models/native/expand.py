"""Weights of 4 or 8 bits in full by a compiled kernel, for the products that read them; torch does it elsewhere."""

from __future__ import annotations

from ctypes import c_int, c_int64, c_void_p

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from tunesmith.models.native.build import library
from tunesmith.models.native.kernels import NAMES


def serves(out: Tensor) -> bool:
    return out.device.type == "cpu" and out.dtype in NAMES and out.is_contiguous() and library() is not None


def expand_4(
    codes: UInt8[Tensor, " M"], table: Tensor, constants: Float[Tensor, " B"], block: int, out: Tensor
) -> None:
    """out = table[code] constants[block]; two codes in a byte. `block` is even."""
    assert codes.numel() == -(-out.numel() // 2), "codes of another weight"
    assert constants.numel() == -(-out.numel() // block), "constants of another weight"
    places = c_void_p(codes.data_ptr()), c_void_p(table.data_ptr()), c_void_p(constants.data_ptr()), c_int64(block)
    call("expand_4", out, *places, c_void_p(out.data_ptr()), c_int64(out.numel()))


def expand_8(codes: Int8[Tensor, "O I"], constants: Float[Tensor, " O"], out: Float[Tensor, "O I"]) -> None:
    """out = code constants[row]."""
    assert codes.shape == out.shape, "codes of another weight"
    places = c_void_p(codes.data_ptr()), c_void_p(constants.data_ptr()), c_void_p(out.data_ptr())
    call("expand_8", out, *places, *map(c_int64, out.shape))


def call(kernel: str, out: Tensor, *given: c_void_p | c_int64) -> None:
    loaded = library()
    assert loaded is not None, "ask `serves` first"
    function = loaded[f"{kernel}_{NAMES[out.dtype]}"]
    function.restype = None
    function(*given, c_int(torch.get_num_threads()))
