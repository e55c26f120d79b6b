"""Which number types the processor multiplies at full speed."""

from __future__ import annotations

import torch

# Any of these abilities is enough; without one, half-precision products are emulated, several times slower than fp32.
HALF = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"),
    torch.float16: ("amx_fp16", "avx512_fp16", "fp16"),
}


def multiplies_fast(dtype: torch.dtype) -> bool:
    """Whether this CPU has products of the type; always true for fp32."""
    if dtype not in HALF:
        return True
    abilities = torch.cpu.get_capabilities()
    return any(abilities.get(name, False) for name in HALF[dtype])


def computing_type(stored: torch.dtype, device: str) -> torch.dtype:
    """What `model.dtype: auto` means on a kind of device: the stored type, or fp32 where a CPU would emulate it."""
    return stored if device != "cpu" or multiplies_fast(stored) else torch.float32
