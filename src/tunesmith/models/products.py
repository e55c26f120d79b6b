"""What products with frozen weights are formed in, and which machines can."""

from __future__ import annotations

from typing import Literal

import torch

from tunesmith.errors import Fix, MachineError, Where
from tunesmith.models.fp8_config import Fp8Config
from tunesmith.models.native.build import state
from tunesmith.models.native.kernels import multiplies_blocks

Products = Literal["exact", "int8", "fp8"]
FIELD = "model.base_products"
FP8 = "train.fp8"


def check_machine(products: Products, device: str, fp8: Fp8Config | None = None) -> None:
    """MachineError E098 when the processor or the GPU has no fast products of that kind; E372 for trained weights."""
    if fp8 is not None and not fp8.emulate and not has_fp8(device):
        raise MachineError(
            "E372",
            f"{FP8} needs an NVIDIA GPU of compute capability 8.9 or more",
            where=Where(field=FP8),
            evidence=[f"this run is on {device}"],
            fixes=[
                Fix(f"{FP8}=", {FP8: None}, effect="products in bf16, which work here"),
                Fix(f"{FP8}.emulate=true", {f"{FP8}.emulate": True}, effect="rounds alike, and is slower than bf16"),
            ],
        )
    if products == "exact" or {"int8": has_int8, "fp8": has_fp8}[products](device):
        return
    needs = {
        "int8": "a CPU run on x86 with VNNI instructions, or with AMX and the compiled kernels (it is not for GPUs)",
        "fp8": "an NVIDIA GPU of compute capability 8.9 or more",
    }
    raise MachineError(
        "E098",
        f"{FIELD}={products} needs {needs[products]}",
        where=Where(field=FIELD),
        evidence=[f"this run is on {device}", f"kernels: {state()}"][: 2 if device == "cpu" else 1],
        fixes=[Fix(f"{FIELD}=exact", {FIELD: "exact"})],
    )


def has_int8(device: str) -> bool:
    """Where exact products have AMX, only the compiled kernels are faster than they are."""
    if device != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return multiplies_blocks() or (torch.cpu._is_vnni_supported() and not torch.cpu._is_amx_tile_supported())


def has_fp8(device: str) -> bool:
    return device == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
