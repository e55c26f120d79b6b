"""Two forms of one model compared by what they say, through transformers' own forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.models.forward import base_model

Dtypes = tuple[torch.dtype, torch.dtype]  # the computing type and the written one
Rows = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Proof:
    """What is compared, in which unit, and the largest difference by (computed, written) type.

    A merge is proven in the computing type first, so the limits for a smaller written type allow for rounding alone.
    """

    predict: Callable[[nn.Module, Rows], Float[Tensor, "K V"]]
    differ: Callable[[Float[Tensor, "K V"], Float[Tensor, "K V"]], float]
    limits: Mapping[Dtypes, float]
    words: str  # what differs
    unit: str


@torch.no_grad()
def predictions(model: nn.Module, rows: Rows) -> Float[Tensor, "K V"]:
    """Log-probabilities of every next token."""
    base = ready(model)
    parts = [base(input_ids=torch.tensor([list(row)]), use_cache=False).logits[0].float() for row in rows]
    return torch.cat(parts).log_softmax(-1)


@torch.no_grad()
def head_values(model: nn.Module, rows: Rows) -> Float[Tensor, "K C"]:
    """The values of a head for each row."""
    base = ready(model)
    return torch.cat([base(input_ids=torch.tensor([list(row)])).logits.float() for row in rows])


def ready(model: nn.Module) -> PreTrainedModel:
    """The model with transformers' own attention."""
    base = base_model(model)
    base.set_attn_implementation("eager")
    return base


def divergence(wanted: Float[Tensor, "K V"], found: Float[Tensor, "K V"]) -> float:
    """Mean KL(wanted, found) over the predictions, in nats; NaN when any is not finite."""
    return (wanted.exp() * (wanted - found)).sum(-1).mean().item()


def largest_gap(wanted: Float[Tensor, "K C"], found: Float[Tensor, "K C"]) -> float:
    """The largest difference of a value, as a share of the largest value (at least 1)."""
    return ((wanted - found).abs().max() / wanted.abs().max().clamp(min=1)).item()


def limits(exact: float, rounded: float) -> dict[Dtypes, float]:
    """The largest differences: where all is computed and written in fp32, and where bf16 or fp16 rounds."""
    return {
        (torch.float32, torch.float32): exact,
        (torch.float32, torch.bfloat16): rounded,
        (torch.bfloat16, torch.bfloat16): rounded,
        (torch.float32, torch.float16): rounded,
        (torch.bfloat16, torch.float16): rounded,
    }


NEXT_TOKENS = Proof(predictions, divergence, limits(1e-5, 3e-2), "next-token predictions", "nats per token")
VALUES = Proof(head_values, largest_gap, limits(1e-4, 1e-1), "scores", "of the largest score")
