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

CHUNK = 1 << 22  # numbers converted at a time


@dataclass(frozen=True, slots=True)
class FileType:
    """`usual` for matrices, `finer` for the head and, in a mixture, for the layers that suffer most.

    `limit` is the largest mean KL divergence from the source, in nats per token: half as much again as the smallest
    models in use lose by rounding. That the file holds the rounded weights and nothing else is checked apart from it.
    """

    name: str
    mark: LlamaFileType
    usual: Type
    finer: Type
    limit: float
    mixture: bool = False


FILE_TYPES: Mapping[str, FileType] = {
    kind.name: kind
    for kind in (
        FileType("F32", LlamaFileType.ALL_F32, Type.F32, Type.F32, 1e-5),
        FileType("F16", LlamaFileType.MOSTLY_F16, Type.F16, Type.F16, 1e-3),
        FileType("BF16", LlamaFileType.MOSTLY_BF16, Type.BF16, Type.BF16, 3e-2),
        FileType("Q8_0", LlamaFileType.MOSTLY_Q8_0, Type.Q8_0, Type.Q8_0, 3e-2),
        FileType("Q6_K", LlamaFileType.MOSTLY_Q6_K, Type.Q6_K, Type.Q6_K, 6e-2),
        FileType("Q5_K_M", LlamaFileType.MOSTLY_Q5_K_M, Type.Q5_K, Type.Q6_K, 0.3, mixture=True),
        FileType("Q5_1", LlamaFileType.MOSTLY_Q5_1, Type.Q5_1, Type.Q6_K, 0.3),
        FileType("Q5_0", LlamaFileType.MOSTLY_Q5_0, Type.Q5_0, Type.Q6_K, 0.3),
        FileType("Q4_K_M", LlamaFileType.MOSTLY_Q4_K_M, Type.Q4_K, Type.Q6_K, 0.9, mixture=True),
        FileType("Q4_1", LlamaFileType.MOSTLY_Q4_1, Type.Q4_1, Type.Q6_K, 0.9),
        FileType("Q4_0", LlamaFileType.MOSTLY_Q4_0, Type.Q4_0, Type.Q6_K, 0.9),
    )
}
DELICATE = ("attn_v.weight", "ffn_down.weight")  # half of their layers are stored finer in a mixture
COARSER = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}  # for rows not of 256 numbers


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


def stored_type(name: str, shape: tuple[int, ...], kind: FileType, layers: int, tied: bool) -> Type:
    """What a tensor is stored as: vectors in F32, the head finer, rows that fill no block in a type that they fill."""
    if len(shape) < 2:
        return Type.F32
    wanted = kind.usual
    if (
        name == "output.weight"
        or (tied and name == "token_embd.weight")
        or (
            kind.mixture and name.endswith(("attn_v.weight", "ffn_down.weight")) and is_delicate(layer_of(name), layers)
        )
    ):
        wanted = kind.finer
    if shape[-1] % GGML_QUANT_SIZES[wanted][0]:
        wanted = COARSER.get(wanted, Type.F16)
    return Type.F16 if shape[-1] % GGML_QUANT_SIZES[wanted][0] else wanted


def layer_of(name: str) -> int:
    return int(name.split(".")[1])


def is_delicate(layer: int, layers: int) -> bool:
    """The first and last eighth, and every third between: the mixture that the readers of GGUF call M."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


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
