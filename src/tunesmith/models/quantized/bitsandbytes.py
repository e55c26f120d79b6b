"""bitsandbytes on a GPU: its kernel that expands weights of 4 bits, where it is installed."""

from __future__ import annotations

import functools
from importlib.util import find_spec

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tunesmith.models.quantization_config import BLOCK


@functools.cache
def is_installed() -> bool:
    return find_spec("bitsandbytes") is not None


def serves(out: Tensor) -> bool:
    return out.device.type == "cuda" and is_installed()


def expand(codes: UInt8[Tensor, " M"], constants: Float[Tensor, " B"], kind: str, out: Float[Tensor, "O I"]) -> None:
    """out = the weight; tables, order of codes and blocks are those of `codes.py`."""
    import bitsandbytes  # noqa: F401  # registers the operator

    operator = torch.ops.bitsandbytes.dequantize_4bit.out
    operator(codes.view(-1, 1), constants, BLOCK, kind, list(out.shape), out.dtype, out=out)
