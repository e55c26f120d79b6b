"""Operations that give the same bits every time, or an error that names the one that cannot."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tunesmith.errors import Fix, UsageError, Where

SETTING = "train.deterministic"
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
REFUSED = " does not have a deterministic implementation"  # in torch's own words, after the name of the operation


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside `with`, torch takes kernels that repeat their sums in one order, where `wanted`."""
    if not wanted:
        yield
        return
    os.environ.setdefault(WORKSPACE, ":4096:8")  # read by cuBLAS at its first product; its name says that it repeats
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def refused_operation(error: BaseException) -> str | None:
    """The operation that torch has refused because it has no deterministic kernel; None of another error."""
    name, words, _ = str(error).partition(REFUSED) if isinstance(error, RuntimeError) else ("", "", "")
    return name if words and " " not in name else None


def no_kernel(operation: str, error: BaseException, device: torch.device) -> UsageError:
    told = UsageError(
        "E531",
        f"{operation} has no deterministic kernel on this {device.type}, and {SETTING} asks for one",
        where=Where(field=SETTING),
        evidence=(str(error).partition(". ")[0].splitlines()[0][:200],),
        fixes=(
            Fix(f"{SETTING}=false", {SETTING: False}, effect="two runs then agree to rounding"),
            Fix("train on a CPU, which has more of them: CUDA_VISIBLE_DEVICES="),
        ),
    )
    told.__cause__ = error
    return told
