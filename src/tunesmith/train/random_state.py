"""Seed, capture and restore the global random generators, without pickle."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The generators of Python, NumPy, torch and every CUDA device in use, as tensors and a JSON-able rest."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "torch": torch.get_rng_state(),
    }
    state: dict[str, Any] = {
        "python": {"version": version, "gauss": None if gauss is None else gauss.hex()},
        "numpy": {"name": name, "position": position, "has_gauss": has_gauss, "cached": float(cached).hex()},
        "cuda_devices": 0,
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda_devices"] = torch.cuda.device_count()
        for index, generator in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"cuda{index}"] = generator
    return tensors, state


def restore(tensors: dict[str, Tensor], state: dict[str, Any]) -> int:
    """Put every captured generator back; returns how many CUDA generators found no device here (0: exact)."""
    gauss = state["python"]["gauss"]
    words = tuple(int(word) for word in tensors["python"].tolist())
    random.setstate((state["python"]["version"], words, None if gauss is None else float.fromhex(gauss)))
    kept = state["numpy"]
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((kept["name"], keys, kept["position"], kept["has_gauss"], float.fromhex(kept["cached"])))
    torch.set_rng_state(tensors["torch"].cpu())
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(min(here, state["cuda_devices"])):
        torch.cuda.set_rng_state(tensors[f"cuda{index}"].cpu(), index)
    return max(0, state["cuda_devices"] - here)
