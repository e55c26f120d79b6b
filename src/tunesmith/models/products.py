"""What products with frozen weights are formed in, and which machines can."""

from __future__ import annotations

from typing import Literal

import torch

from tunesmith.errors import Fix, MachineError, Where

Products = Literal["exact", "int8", "fp8"]
FIELD = "model.base_products"


def check_machine(products: Products, device: str) -> None:
    """MachineError E098 when the processor or the GPU has no fast products of that kind."""
    if products == "exact":
        return
    able = {"int8": has_int8, "fp8": has_fp8}[products](device)
    if not able:
        needs = {
            "int8": "a CPU run on x86 with VNNI or AMX instructions (int8 is not for GPUs)",
            "fp8": "an NVIDIA GPU of compute capability 8.9 or more",
        }
        raise MachineError(
            "E098",
            f"{FIELD}={products} needs {needs[products]}",
            where=Where(field=FIELD),
            evidence=[f"this run is on {device}"],
            fixes=[Fix(f"{FIELD}=exact", {FIELD: "exact"})],
        )


def has_int8(device: str) -> bool:
    return device == "cpu" and torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()


def has_fp8(device: str) -> bool:
    return device == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
