"""One token of every row through all layers of a decoder, in one call of the compiled kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int64, c_void_p
from dataclasses import dataclass

import torch
from jaxtyping import BFloat16, Float, Int
from torch import Tensor

from tunesmith.models.native.build import library
from tunesmith.models.native.decode import PackedMatrix, PackedMatrix8
from tunesmith.models.native.kernels import require_alike, require_rows


@dataclass(frozen=True, slots=True)
class Product:
    """x W^T + bias + (x A^T) B^T, where A and B of R ranks may be None."""

    matrix: PackedMatrix | PackedMatrix8
    bias: Float[Tensor, " O"] | None
    a: PackedMatrix | None
    b: PackedMatrix | None


@dataclass(frozen=True, slots=True)
class RowNorm:
    weight: Float[Tensor, " D"]  # fp32
    eps: float


@dataclass(frozen=True, slots=True)
class LayerOf:
    """A layer: products of qkv, out, gate_up and down; norms before and after each half, of queries and of keys."""

    products: tuple[Product, Product, Product, Product]
    norms: tuple[RowNorm | None, ...]
    window: int | None
    rotary: bool
    scale: float


@dataclass(frozen=True, slots=True)
class Sizes:
    hidden: int
    heads: int
    key_heads: int
    width: int


class _Matrix(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("tiles", "scale", "bias", "a", "b")),
        *((name, c_int64) for name in ("inputs", "outputs", "ranks")),
    ]


class _Norm(Structure):
    _fields_ = [("weight", c_void_p), ("width", c_int64), ("eps", c_float)]


class _Layer(Structure):
    _fields_ = [
        ("products", _Matrix * 4),
        ("norms", _Norm * 6),
        ("window", c_int64),
        ("rotary", c_int64),
        ("scale", c_float),
    ]


class _Step(Structure):
    _fields_ = [
        ("layers", POINTER(_Layer)),
        *((name, POINTER(c_void_p)) for name in ("keys", "values")),
        *((name, c_void_p) for name in ("pages", "lengths", "places", "cosine", "sine", "states")),
        *((name, c_int64) for name in ("count", "rows", "hidden", "heads", "key_heads", "width", "most_pages")),
    ]


class Layers:
    """All layers, told to the kernel once; what they are made of is kept alive and must stay where it is."""

    def __init__(self, layers: Sequence[LayerOf], sizes: Sizes) -> None:
        self.layers, self.sizes = layers, sizes
        self.told = (_Layer * len(layers))(*map(told_layer, layers))

    def step(
        self,
        states: BFloat16[Tensor, "B D"],
        cos: BFloat16[Tensor, "B E"],
        sin: BFloat16[Tensor, "B E"],
        caches: Sequence[BFloat16[Tensor, "2 P K L E"]],
        pages: Int[Tensor, "B N"],
        lengths: Int[Tensor, " B"],
        places: Int[Tensor, " B"],
    ) -> None:
        """Carry the states of every row's newest token through all layers, in place; its keys and values are kept."""
        require_rows(states, cos, sin, pages, lengths, places, *caches)
        require_alike(states, cos, sin, *caches)
        assert states.dtype == torch.bfloat16
        assert pages.dtype == torch.int32
        assert lengths.dtype == places.dtype == torch.int64
        sizes, count, rows = self.sizes, len(self.layers), len(states)
        assert len(caches) == count
        assert len(cos) == len(sin) == len(pages) == len(lengths) == len(places) == rows
        assert states.shape[1] == sizes.hidden
        assert cos.shape[1] == sin.shape[1] == caches[0].shape[4] == sizes.width
        places_of = lambda which: (c_void_p * count)(*(cache[which].data_ptr() for cache in caches))  # noqa: E731
        given = _Step(
            self.told,
            places_of(0),
            places_of(1),
            *(each.data_ptr() for each in (pages, lengths, places, cos, sin, states)),
            *(count, rows, sizes.hidden, sizes.heads, sizes.key_heads, sizes.width, pages.shape[1]),
        )
        loaded = library()
        assert loaded is not None, "there are packed matrices only where there are kernels"
        loaded.decode_step(byref(given), ctypes.c_int(torch.get_num_threads()))


def told_layer(layer: LayerOf) -> _Layer:
    products = (_Matrix * 4)(*map(told_product, layer.products))
    norms = (_Norm * 6)(*map(told_norm, layer.norms))
    return _Layer(products, norms, layer.window or 0, int(layer.rotary), layer.scale)


def told_product(product: Product) -> _Matrix:
    matrix, bias, a, b = product.matrix, product.bias, product.a, product.b
    assert (a is None) == (b is None)
    scale = matrix.scale if isinstance(matrix, PackedMatrix8) else None
    if bias is not None:
        require_rows(bias)
        assert bias.dtype == torch.bfloat16
    given = [matrix.tiles, scale, bias, None if a is None else a.tiles, None if b is None else b.tiles]
    places = (None if each is None else each.data_ptr() for each in given)
    return _Matrix(*places, matrix.inputs, matrix.outputs, 0 if a is None else a.outputs)


def told_norm(norm: RowNorm | None) -> _Norm:
    if norm is None:
        return _Norm(None, 0, 0.0)
    require_rows(norm.weight)
    assert norm.weight.dtype == torch.float32
    return _Norm(norm.weight.data_ptr(), len(norm.weight), norm.eps)
