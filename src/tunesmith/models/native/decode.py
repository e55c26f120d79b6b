"""Compiled kernels of decoding, as functions of tensors: products of few rows, and attention over pages, in bf16."""

from __future__ import annotations

import torch
from jaxtyping import BFloat16, Float, Int
from torch import Tensor, nn

from tunesmith.models.eight_bit import quantized
from tunesmith.models.native.build import library
from tunesmith.models.native.kernels import as_argument, multiplies_blocks, require_alike, require_rows
from tunesmith.models.scratch import scratch

PLACES = 64  # tokens of a page
GROUP = 16  # tokens whose keys stand side by side
MANY = 64  # rows from which the products of torch are as fast


def serves(dtype: torch.dtype, width: int = GROUP) -> bool:
    """Whether the kernels multiply numbers of this type here, with heads of this width."""
    return dtype == torch.bfloat16 and width % GROUP == 0 and multiplies_blocks()


def call(kernel: str, *given: Tensor | int | float) -> None:
    loaded = library()
    assert loaded is not None, "ask `serves` first"
    loaded[kernel](*map(as_argument, given))


class PackedMatrix:
    """A matrix (O, I) for `x W^T` of few rows: a copy, in the order in which it is read."""

    def __init__(self, weight: Float[Tensor, "O I"]) -> None:
        assert serves(weight.dtype), "no kernel for this type here"
        weight = weight.detach().contiguous()
        self.outputs, self.inputs = weight.shape
        self.depth = -(-self.inputs // 32) * 32
        self.tiles = torch.empty(-(-self.outputs // 32) * 32, self.depth, dtype=weight.dtype)
        call("pack", weight, self.outputs, self.inputs, self.tiles, torch.get_num_threads())

    def product(self, x: Float[Tensor, "T I"], out: Float[Tensor, "T O"]) -> None:
        """out = x W^T; a row's result does not depend on the rows beside it."""
        require_rows(x, out)
        require_alike(x, out, self.tiles)
        held = scratch("few rows", (-(-len(x) // 8) * 8, self.depth), x)
        if self.depth > self.inputs:
            held[: len(x), self.inputs :] = 0
        held[: len(x), : self.inputs] = x
        call("few_rows", held, self.depth, self.tiles, out, len(x), self.outputs, torch.get_num_threads())


class PackedMatrix8:
    """The same in 8 bits: weights scaled by output, rows by their largest figure, multiplied as whole numbers."""

    def __init__(self, weight: Float[Tensor, "O I"]) -> None:
        assert serves(weight.dtype), "no kernel for this type here"
        self.outputs, self.inputs = weight.shape
        whole, scale = quantized(weight.detach().float())
        whole[:, self.inputs :] = 0
        blocks = whole.view(len(whole) // 32, 2, 16, -1, 16, 4).permute(0, 3, 1, 4, 2, 5)
        self.tiles = (blocks.to(torch.int16) + 128).to(torch.uint8).contiguous()
        self.scale = nn.functional.pad(scale[:, 0], (0, -self.outputs % 32))

    def product(self, x: Float[Tensor, "T I"], out: Float[Tensor, "T O"]) -> None:
        require_rows(x, out)
        assert x.dtype == out.dtype == torch.bfloat16
        whole, scale = quantized(x)
        sizes = len(x), self.outputs, torch.get_num_threads()
        whole[: len(x), self.inputs :] = 0
        call("few_rows_int8", whole, whole.stride(0), scale, self.tiles, self.scale, out, *sizes)


def keep(
    cache: BFloat16[Tensor, "2 P K L E"],
    key: BFloat16[Tensor, "K T E"],
    value: BFloat16[Tensor, "K T E"],
    places: Int[Tensor, " T"],
) -> None:
    """Put the keys and values of tokens into their places of a layer's pages: page * PLACES + place in the page."""
    heads, rows, width = key.shape
    require_rows(cache, key, value, places)
    require_alike(cache, key, value)
    assert len(places) == rows
    call("keep", cache[0], cache[1], key, value, places, heads, rows, width)


def attend_pages(
    query: BFloat16[Tensor, "K B W"],
    cache: BFloat16[Tensor, "2 P K L E"],
    pages: Int[Tensor, "B N"],
    lengths: Int[Tensor, " B"],
    window: int | None,
    scale: float,
    out: BFloat16[Tensor, "B Q"],
) -> None:
    """out = attention of one query a row over the first `lengths` places of its pages (int32), or the last of these."""
    heads, rows, width = query.shape
    require_rows(query, cache, pages, lengths, out)
    require_alike(query, cache, out)
    assert pages.dtype == torch.int32
    each = cache.shape[-1]
    sizes = rows, heads, width // each, each, pages.shape[1], window or 0
    call("attend_pages", query, cache[0], cache[1], pages, lengths, out, *sizes, scale, torch.get_num_threads())
