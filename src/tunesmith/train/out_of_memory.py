"""A step that does not fit into memory, noticed by all ranks together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import Fix, MachineError, Where
from tunesmith.track.limits import memory_told
from tunesmith.types import Batch

Result = TypeVar("Result")

RETRIES = 5
WORDS = ("can't allocate memory", "not enough memory", "out of memory")  # of a plain RuntimeError, lower case


class TooLarge(Exception):
    """Memory ran out, on this rank or another; nothing was updated and the step may be computed again."""


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in WORDS)
    )


def within_memory(mesh: Mesh, work: Callable[[], Result]) -> Result:
    """What `work` returns, which waits for no other rank; TooLarge on every rank when memory ran out on one."""
    failed, result = None, None
    try:
        result = work()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failed = str(error) or type(error).__name__  # the error itself would keep the tensors of its frames
    if mesh.largest(float(failed is not None)):
        raise TooLarge(failed or "memory ran out on another rank")
    assert result is not None
    return result


def smaller(microbatches: Sequence[Batch], mesh: Mesh) -> int:
    """Tokens of half of the step's largest microbatch that can be split, over all ranks; 0 when there is none."""
    sizes = [len(batch.tokens) for batch in microbatches if len(batch.examples) > 1]
    return int(mesh.largest(float(max(sizes, default=0)))) // 2


def cannot_split(step: int, reason: str, microbatches: Sequence[Batch]) -> MachineError:
    """The error where smaller microbatches do not help."""
    tokens = max((len(batch.tokens) for batch in microbatches), default=0)
    return MachineError(
        "E491",
        f"step {step} does not fit into memory, and smaller microbatches do not help",
        where=Where(field="train.microbatch_tokens"),
        evidence=(f"the largest microbatch has {tokens:,} tokens", *memory_told(), reason.splitlines()[0][:200]),
        fixes=(
            Fix(
                "train.activation_checkpointing=full",
                {"train.activation_checkpointing": "full"},
                effect="layers are formed again in backward",
            ),
            Fix(f"data.max_length={max(64, tokens // 2)}", {"data.max_length": max(64, tokens // 2)}),
            Fix("model.quantization=nf4", {"model.quantization": "nf4"}, effect="a smaller frozen base"),
        ),
    )
