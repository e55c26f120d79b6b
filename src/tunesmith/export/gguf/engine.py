"""llama.cpp itself reads the file, where llama-cpp-python is installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def is_installed() -> bool:
    return find_spec("llama_cpp") is not None


def llama_logits(path: Path, rows: Sequence[Sequence[int]]) -> Float[Tensor, "K V"]:
    """Logits of every next token; a ValueError when it does not accept the file."""
    from llama_cpp import Llama  # pyright: ignore[reportMissingImports]

    model = Llama(str(path), n_ctx=max(map(len, rows)) + 1, logits_all=True, verbose=False)
    found: list[Tensor] = []
    for row in rows:
        model.reset()
        model.eval(list(row))
        found.append(torch.from_numpy(np.array(model.scores[: len(row)], dtype=np.float32)))
    model.close()
    return torch.cat(found)


def llama_ids(path: Path, texts: Sequence[str]) -> list[list[int]]:
    """What it makes of plain texts."""
    from llama_cpp import Llama  # pyright: ignore[reportMissingImports]

    model = Llama(str(path), vocab_only=True, verbose=False)
    return [list(model.tokenize(text.encode(), add_bos=False, special=False)) for text in texts]
