"""The matrices of a model as its code has them, told from its settings without memory for weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModel

from tunesmith.models.architecture import build_config
from tunesmith.models.inventory import LAYER
from tunesmith.models.safety import read_config


def other_matrices(folder: Path) -> list[str]:
    """Names of the matrices inside layers that belong to no linear layer, such as experts held as one tensor."""
    settings = build_config(read_config(folder)[0], folder)
    with torch.device("meta"):
        model = AutoModel.from_config(settings)
    linear = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    found = []
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and LAYER.search(name) and name.rpartition(".")[0] not in linear:
            found.append(name)
    return found
