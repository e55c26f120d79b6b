"""AdamW whose two means are kept in 8 bits, block by block (arXiv:2110.02861)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tunesmith.models.blockwise import BLOCK, code_values, codes_of_halves, decode, encode, scales_of
from tunesmith.models.native import moments
from tunesmith.models.native.moments import Codes, Rates
from tunesmith.train.optimizers.base import (
    EMBEDDED,
    AdamConfig,
    Group,
    Rule,
    State,
    blank_means,
    counted,
    numbers,
    split,
)
from tunesmith.train.optimizers.unified import UnifiedAdamW, is_unified

SMALLEST = 4096  # numbers; smaller states stay in fp32, as do those of embeddings, whose rows differ too much in size
PIECE = 256  # blocks that are decoded at once, so that they stay in the processor's cache


class AdamW8bit(AdamConfig):
    name: Literal["adamw8bit"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="adamw8bit", description="AdamW with states in 8 bits (arXiv:2110.02861): a quarter of the memory."
    )

    def build(self, groups: list[Group]) -> list[torch.optim.Optimizer]:
        small, plain = split(groups, in_8_bits)
        if is_unified(self, groups):
            return [UnifiedAdamW(part, self, bits) for part, bits in ((small, 8), (plain, 32)) if part]
        return [*([AdamW8bitRule(small, self)] if small else []), *self.adamw(plain)]

    def blank(self, name: str, shape: tuple[int, ...]) -> State:
        return blank_codes(numbers(shape)) if in_8_bits(name, shape) else blank_means(shape)

    def state_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        return moment_bytes(shape, in_8_bits(name, shape))


def in_8_bits(name: str, shape: tuple[int, ...]) -> bool:
    return numbers(shape) >= SMALLEST and EMBEDDED.search(name) is None


def moment_bytes(shape: tuple[int, ...], small: bool) -> int:
    """Of both means of so many numbers."""
    count = numbers(shape)
    return 2 * (count + 4 * scales_of(count)) if small else 8 * count


class AdamW8bitRule(Rule):
    """The means are decoded, moved and used in fp32, and only then encoded again."""

    def __init__(self, groups: list[Group], settings: AdamConfig) -> None:
        super().__init__(groups)
        self.settings = settings

    def update(self, name: str, parameter: nn.Parameter, state: State, group: Group) -> None:
        gradient, settings = parameter.grad, self.settings
        assert gradient is not None
        step = counted(state)
        if len(state) == 1:
            state |= empty_moments(parameter)
        correction = math.sqrt(1 - settings.beta2**step)
        rates = Rates(
            forget_mean=1 - settings.beta1,
            keep_squares=settings.beta2,
            forget_squares=1 - settings.beta2,
            decay=1 - group["lr"] * group["weight_decay"],
            rate=-group["lr"] * correction / (1 - settings.beta1**step),
            eps=settings.eps * correction,
        )
        if moments.serves(parameter):
            mean = Codes(state["exp_avg"], state["exp_avg_scale"], code_values(True), cells(True))
            root = Codes(state["root"], state["root_scale"], code_values(False), cells(False))
            moments.step(parameter, gradient.contiguous(), mean, root, rates)
        else:
            by_torch(parameter, gradient, state, settings, rates)


@cache
def cells(signed: bool) -> Tensor:
    return moments.cells_of(codes_of_halves(signed))


def by_torch(parameter: Tensor, gradient: Tensor, state: State, settings: AdamConfig, rates: Rates) -> None:
    """The step that `moments.step` takes as well; the kernel is held to it."""
    weights = parameter.view(-1)
    for part, mean, root in moved(gradient.reshape(-1), state, settings):
        piece = weights[part].view(mean.shape)
        piece.mul_(rates.decay).addcdiv_(mean, root.add(rates.eps), value=rates.rate)
        keep(state, part, mean, root)


def empty_moments(like: Tensor) -> State:
    blank = blank_codes(like.numel())
    return {kind: torch.zeros(value.shape, dtype=value.dtype, device=like.device) for kind, value in blank.items()}


def blank_codes(count: int) -> State:
    """Both means of so many numbers before the first step, in a number each."""
    codes, scales = torch.zeros((), dtype=torch.uint8).expand(count), torch.zeros(()).expand(scales_of(count))
    # the code of 0 is not 0 in the signed map; a scale of 0 makes it 0 all the same
    return {"exp_avg": codes, "exp_avg_scale": scales, "root": codes, "root_scale": scales}


def pieces(count: int) -> Iterator[tuple[slice, int]]:
    """Slices of so many numbers and the width of their blocks: whole blocks, and a narrower last one."""
    whole = count - count % BLOCK
    for start in range(0, whole, PIECE * BLOCK):
        yield slice(start, min(start + PIECE * BLOCK, whole)), BLOCK
    if count > whole:
        yield slice(whole, count), count - whole


def moved(gradient: Tensor, state: State, settings: AdamConfig) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """By pieces, the mean of gradients and the root of the mean of squares after this gradient.

    The root is what is encoded: its range of seven decades is fourteen of the squares, so that no number loses its
    denominator while it still has a mean.
    """
    for part, width in pieces(gradient.numel()):
        blocks = slice(part.start // BLOCK, scales_of(part.stop))
        piece = gradient[part].view(-1, width)
        mean = decode(state["exp_avg"][part].view(-1, width), state["exp_avg_scale"][blocks], signed=True)
        root = decode(state["root"][part].view(-1, width), state["root_scale"][blocks], signed=False)
        mean.lerp_(piece, 1 - settings.beta1)
        root.square_().mul_(settings.beta2).addcmul_(piece, piece, value=1 - settings.beta2).sqrt_()
        yield part, mean, root


def keep(state: State, part: slice, mean: Tensor, root: Tensor) -> None:
    """Encode a piece of both means, which is used up."""
    blocks, width = slice(part.start // BLOCK, scales_of(part.stop)), mean.shape[1]
    encode(mean, state["exp_avg"][part].view(-1, width), state["exp_avg_scale"][blocks], signed=True)
    encode(root, state["root"][part].view(-1, width), state["root_scale"][blocks], signed=False)
