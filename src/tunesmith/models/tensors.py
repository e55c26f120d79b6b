"""The tensors of one small safetensors file, such as an adapter's, whole and finite."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tunesmith.errors import ModelError, Where
from tunesmith.models.finite import check_finite
from tunesmith.models.headers import read_header, refuse_pickles


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Raises Unsafe E085 for a pickle, ModelError E082 or E093 for what cannot be read, E511 for NaN or Inf."""
    if not path.is_file():
        if path.parent.is_dir():
            refuse_pickles(path.parent)
        raise unreadable(path, "there is no such file")
    read_header(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise unreadable(path, str(error)) from error
    check_finite(tensors.items(), path)
    return tensors


def unreadable(path: Path, reason: str) -> ModelError:
    return ModelError(
        "E093",
        f"the adapter's weights cannot be read: {reason}",
        where=Where(file=str(path)),
        fixes=["save the adapter as safetensors; pickle files are never read"],
    )
