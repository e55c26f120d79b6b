"""Attention over a forest by compiled kernels, as functions of tensors: bf16 on processors with AMX or AVX-512 bf16."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p

import torch
from jaxtyping import Float
from torch import Tensor

from tunesmith.models.forest import Paths
from tunesmith.models.native.build import library
from tunesmith.models.native.kernels import multiplies_blocks


class Places(ctypes.Structure):
    """Where the figures of a head and token stand; steps count figures."""

    _fields_ = (("first", c_void_p), ("head", c_int64), ("token", c_int64))


class Batch(ctypes.Structure):
    _fields_ = (
        *((name, Places) for name in ("query", "key", "value")),
        *((name, c_void_p) for name in ("trees", "segments", "spans")),
        *((name, c_int64) for name in ("heads", "tree_count", "tokens", "group", "width")),
        ("scale", c_float),
        ("window", c_int64),
    )


class Result(ctypes.Structure):
    _fields_ = (
        *((name, Places) for name in ("grad", "mixed")),
        ("sums", c_void_p),
        *((name, Places) for name in ("query", "key", "value")),
    )


class TiledAttention:
    """Both passes over one batch. Queries, keys and values may stand anywhere, the figures of a head side by side."""

    def __init__(
        self,
        query: Float[Tensor, "K T W"],
        key: Float[Tensor, "K T E"],
        value: Float[Tensor, "K T E"],
        paths: Paths,
        scale: float,
        window: int | None,
    ) -> None:
        loaded = library()
        assert loaded is not None, "ask `serves` first"
        self.loaded = loaded
        self.states = side_by_side(query), side_by_side(key), side_by_side(value)
        self.paths, self.threads = paths, torch.get_num_threads()
        heads, tokens, width = query.shape
        tables = (table.data_ptr() for table in (paths.trees, paths.segments, paths.spans))
        sizes = heads, len(paths.trees), tokens, width // key.shape[2], key.shape[2]
        self.batch = Batch(*map(places, self.states), *tables, *sizes, scale, window or 0)

    def forward(self, out: Float[Tensor, "K T W"]) -> Float[Tensor, "K TG"]:
        """Fills in the mixed values; returns the base-2 logarithm of every row's sum of powers."""
        batch = self.batch
        sums = out.new_empty(len(out), batch.tokens * batch.group, dtype=torch.float32)
        self.loaded.attend(ctypes.byref(batch), ctypes.byref(places(out)), c_void_p(sums.data_ptr()), self.threads)
        return sums

    def backward(
        self, grad: Float[Tensor, "K T W"], mixed: Float[Tensor, "K T W"], sums: Float[Tensor, "K TG"]
    ) -> tuple[Float[Tensor, "K T W"], Float[Tensor, "K T E"], Float[Tensor, "K T E"]]:
        """The gradients of queries, keys and values."""
        grad = side_by_side(grad)
        query, key, value = (states.new_empty(states.shape) for states in self.states)
        result = Result(places(grad), places(mixed), sums.data_ptr(), *map(places, (query, key, value)))
        self.loaded.attend_backward(ctypes.byref(self.batch), ctypes.byref(result), self.threads)
        return query, key, value


def serves(states: Tensor) -> bool:
    """Whether the kernels compute attention for such states."""
    return states.device.type == "cpu" and states.dtype == torch.bfloat16 and multiplies_blocks()


def places(states: Float[Tensor, "K T X"]) -> Places:
    assert (states.dtype, states.stride(2)) == (torch.bfloat16, 1), "another type, or split rows"
    return Places(states.data_ptr(), states.stride(0), states.stride(1))


def side_by_side(states: Tensor) -> Tensor:
    return states if states.stride(-1) == 1 else states.contiguous()
