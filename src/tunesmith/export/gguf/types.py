"""The types of a GGUF file: what each tensor is stored as, and how it gets there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, LlamaFileType, quant_shape_to_byte_shape, quants
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from torch import Tensor

from tunesmith.errors import UsageError, Where, nearest
from tunesmith.export.gguf.kquants import K_TYPES, quantize_k
from tunesmith.export.gguf.mixtures import Layout, mixed

CHUNK = 1 << 22  # numbers converted at a time


# What a type loses of numbers that fall as a bell: squared error over squares. `test_types.py` measures them again.
LOSSES: Mapping[Type, float] = {
    Type.F32: 0.0,
    Type.F16: 4.3e-8,
    Type.BF16: 2.8e-6,
    Type.Q8_0: 2.9e-5,
    Type.Q6_K: 3.1e-4,
    Type.Q5_K: 1.3e-3,
    Type.Q5_1: 1.4e-3,
    Type.Q5_0: 1.8e-3,
    Type.Q4_K: 5.1e-3,
    Type.Q4_1: 6.1e-3,
    Type.Q4_0: 7.4e-3,
    Type.Q3_K: 2.3e-2,
    Type.Q2_K: 7.6e-2,
}
SENSITIVITY = 200.0  # nats per token that a loss of 1 would cost the smallest models in use, if it went on like that
EXACT = 1e-5  # nats per token between two ways to compute the same in fp32
COMPUTED = {Type.F16: 1e-3, Type.BF16: 3e-2}  # where what is computed is rounded too, not the weights alone
MOST = 5.0  # beyond it a model says next to nothing of what it knew


@dataclass(frozen=True, slots=True)
class FileType:
    """`usual` for matrices, finer for the head and, by the rules of the mixture of its name, for some of the layers.

    That a file holds the rounded weights and nothing else is checked apart from the limit.
    """

    name: str
    mark: LlamaFileType
    usual: Type

    @property
    def head(self) -> Type:
        return self.usual if self.usual in FINE else Type.Q6_K

    @property
    def limit(self) -> float:
        """The largest mean KL divergence from the source, in nats per token.

        The divergence grows with the square of the error of the weights, so one number gives the limits of all types.
        """
        least = COMPUTED.get(self.usual, EXACT)
        return float(f"{min(max(SENSITIVITY * LOSSES[self.usual], least), MOST):.2g}")


FINE = (Type.F32, Type.F16, Type.BF16, Type.Q8_0)
FILE_TYPES: Mapping[str, FileType] = {
    kind.name: kind
    for kind in (
        FileType("F32", LlamaFileType.ALL_F32, Type.F32),
        FileType("F16", LlamaFileType.MOSTLY_F16, Type.F16),
        FileType("BF16", LlamaFileType.MOSTLY_BF16, Type.BF16),
        FileType("Q8_0", LlamaFileType.MOSTLY_Q8_0, Type.Q8_0),
        FileType("Q6_K", LlamaFileType.MOSTLY_Q6_K, Type.Q6_K),
        FileType("Q5_K_M", LlamaFileType.MOSTLY_Q5_K_M, Type.Q5_K),
        FileType("Q5_K_S", LlamaFileType.MOSTLY_Q5_K_S, Type.Q5_K),
        FileType("Q5_1", LlamaFileType.MOSTLY_Q5_1, Type.Q5_1),
        FileType("Q5_0", LlamaFileType.MOSTLY_Q5_0, Type.Q5_0),
        FileType("Q4_K_M", LlamaFileType.MOSTLY_Q4_K_M, Type.Q4_K),
        FileType("Q4_K_S", LlamaFileType.MOSTLY_Q4_K_S, Type.Q4_K),
        FileType("Q4_1", LlamaFileType.MOSTLY_Q4_1, Type.Q4_1),
        FileType("Q4_0", LlamaFileType.MOSTLY_Q4_0, Type.Q4_0),
        FileType("Q3_K_L", LlamaFileType.MOSTLY_Q3_K_L, Type.Q3_K),
        FileType("Q3_K_M", LlamaFileType.MOSTLY_Q3_K_M, Type.Q3_K),
        FileType("Q3_K_S", LlamaFileType.MOSTLY_Q3_K_S, Type.Q3_K),
        FileType("Q2_K", LlamaFileType.MOSTLY_Q2_K, Type.Q2_K),
    )
}
COARSER = {  # for rows not of 256 numbers
    Type.Q2_K: Type.Q4_0,
    Type.Q3_K: Type.Q4_0,
    Type.Q4_K: Type.Q5_0,
    Type.Q5_K: Type.Q5_1,
    Type.Q6_K: Type.Q8_0,
}


def file_type(name: str) -> FileType:
    """UsageError E430 for a name that is none of the types."""
    kind = FILE_TYPES.get(name.upper())
    if kind is None:
        near = nearest(name.upper(), FILE_TYPES)
        raise UsageError(
            "E430",
            f"there is no GGUF type {name!r}",
            where=Where("command line", field="--type"),
            evidence=[f"known: {', '.join(each.lower() for each in FILE_TYPES)}"],
            fixes=[f"--type {near.lower()}" if near else "--type q8_0"],
        )
    return kind


def stored_type(name: str, shape: tuple[int, ...], kind: FileType, layout: Layout) -> Type:
    """What a tensor is stored as: vectors in F32, the head finer, rows that fill no block in a type that they fill."""
    if len(shape) < 2:
        return Type.F32
    if name == "output.weight" or (layout.tied and name == "token_embd.weight"):
        wanted = kind.head
    else:
        wanted = mixed(kind.name, kind.usual, name, layout)
    if shape[-1] % GGML_QUANT_SIZES[wanted][0]:
        wanted = COARSER.get(wanted, Type.F16)
    return Type.F16 if shape[-1] % GGML_QUANT_SIZES[wanted][0] else wanted


def byte_count(shape: tuple[int, ...], kind: Type) -> int:
    return (
        int(np.prod(quant_shape_to_byte_shape(shape, kind))) if kind not in PLAIN else int(np.prod(shape)) * PLAIN[kind]
    )


PLAIN = {Type.F32: 4, Type.F16: 2}


def stored(tensor: Tensor, kind: Type) -> NDArray[np.generic]:
    """The numbers of a tensor as the type stores them, converted a few rows at a time."""
    if tensor.ndim < 2:
        return tensor.float().numpy()
    rows = max(1, CHUNK // tensor.shape[1])
    return np.concatenate([converted(part.float().numpy(), kind) for part in tensor.split(rows)])


def rounded(tensor: Tensor, kind: Type) -> Tensor:
    """The numbers that a reader gets back."""
    back = quants.dequantize(stored(tensor, kind), kind)
    return torch.from_numpy(back).to(tensor.dtype)


def converted(weights: NDArray[np.float32], kind: Type) -> NDArray[np.generic]:
    if kind in K_TYPES:
        return quantize_k(weights, kind)
    if kind == Type.F16:
        return weights.astype(np.float16)
    return weights if kind == Type.F32 else quants.quantize(weights, kind)
