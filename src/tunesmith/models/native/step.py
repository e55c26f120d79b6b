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
from tunesmith.models.native.decode import PLACES, PackedMatrix, PackedMatrix8
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
    """x / sqrt(mean(x^2) + eps) * weight, in pieces of D figures."""

    weight: Float[Tensor, " D"]  # fp32
    eps: float


@dataclass(frozen=True, slots=True)
class Layer:
    """Products of qkv, out, gate_up and down; norms before and after each half, of queries and of keys."""

    products: tuple[Product, Product, Product, Product]
    norms: tuple[RowNorm | None, ...]
    window: int | None
    rotary: bool
    scale: float


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of states, and of the heads: so many, of queries and of keys, of one width."""

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


assert [ctypes.sizeof(each) for each in (_Matrix, _Norm, _Layer, _Step)] == [64, 24, 424, 128], "not those of step.cpp"


class Layers:
    """All layers, told to the kernel once; what they are made of is kept alive and must stay where it is."""

    def __init__(self, layers: Sequence[Layer], sizes: Sizes) -> None:
        for layer in layers:
            check_layer(layer, sizes)
        self.layers, self.sizes = layers, sizes
        self.told = (_Layer * len(layers))(*map(told_layer, layers))
        self.most_threads = -(-sizes.hidden // 32)  # more would find no outputs to work on

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
        sizes, rows, shape = self.sizes, len(states), caches[0].shape
        assert all(cache.shape == shape for cache in caches)
        assert len(caches) == len(self.layers)
        assert len(cos) == len(sin) == len(pages) == len(lengths) == len(places) == rows
        assert states.shape[1] == sizes.hidden
        assert shape[2:] == (sizes.key_heads, PLACES, sizes.width)
        assert cos.shape[1] == sin.shape[1] == sizes.width
        keys = [cache.data_ptr() for cache in caches]
        behind = caches[0].stride(0) * caches[0].element_size()
        addresses = c_void_p * len(keys)
        given = _Step(
            self.told,
            addresses(*keys),
            addresses(*(key + behind for key in keys)),
            *(each.data_ptr() for each in (pages, lengths, places, cos, sin, states)),
            *(len(keys), rows, sizes.hidden, sizes.heads, sizes.key_heads, sizes.width, pages.shape[1]),
        )
        loaded = library()
        assert loaded is not None, "there are packed matrices only where there are kernels"
        loaded.decode_step(byref(given), ctypes.c_int(min(torch.get_num_threads(), self.most_threads)))


def check_layer(layer: Layer, sizes: Sizes) -> None:
    """The kernel sees addresses alone: a matrix of another size would be read, and written to, beyond its end."""
    qkv, out, gate_up, down = layer.products
    query, key = sizes.heads * sizes.width, sizes.key_heads * sizes.width
    assert sizes.heads % sizes.key_heads == 0
    assert sides(qkv) == (sizes.hidden, query + 2 * key)
    assert sides(out) == (query, sizes.hidden)
    assert sides(gate_up) == (sizes.hidden, 2 * down.matrix.inputs)
    assert down.matrix.outputs == sizes.hidden
    *of_states, of_query, of_key = layer.norms
    assert all(norm is None or len(norm.weight) == sizes.hidden for norm in of_states)
    assert all(norm is None or width % len(norm.weight) == 0 for norm, width in ((of_query, query), (of_key, key)))
    assert len(layer.norms) == len(_Layer().norms)
    for each in layer.products:
        assert each.bias is None or len(each.bias) == each.matrix.outputs
        if each.a is not None and each.b is not None:
            assert (each.a.inputs, each.b.outputs) == sides(each)
            assert each.a.outputs == each.b.inputs


def sides(product: Product) -> tuple[int, int]:
    return product.matrix.inputs, product.matrix.outputs


def told_layer(layer: Layer) -> _Layer:
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
