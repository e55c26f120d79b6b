"""Random weights of a new model, drawn from a seed: the same to the bit wherever they are drawn."""

from __future__ import annotations

import hashlib
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from tunesmith.models.blueprint import FORM, blueprint, key_of, read_skeleton
from tunesmith.models.cache import MANIFEST, Progress, made_once, require_space, silent
from tunesmith.models.config import ModelConfig
from tunesmith.models.fresh_config import FreshConfig
from tunesmith.models.inventory import EMBEDDING
from tunesmith.models.locate import locate
from tunesmith.paths import home

OUTPUTS = ("o_proj", "down_proj")  # what a layer adds to the residual stream comes out of these


def locate_start(settings: ModelConfig, seed: int, progress: Progress | None = None) -> Path:
    """The folder of the weights that a run begins with: as named, or those of a new model, drawn on first use.

    Raises what `locate` and `blueprint` raise, MachineError E174 when the disk is too full.
    """
    if settings.fresh is None:
        return locate(settings.path, settings.revision, progress)
    return write_fresh(settings.fresh, seed if settings.fresh.seed is None else settings.fresh.seed, progress)


def write_fresh(fresh: FreshConfig, seed: int, progress: Progress | None = None) -> Path:
    """A Hugging Face folder of the new model, kept under home() by all that shapes its bits."""
    plan, report = blueprint(fresh, progress), progress or silent
    about = [FORM, plan.name, seed, fresh.deviation, fresh.residual, fresh.embedding]

    def make(stage: Path) -> None:
        model = read_skeleton(plan)
        require_space(stage.parent, 4 * model.num_parameters(), "a new model")
        begin(model, fresh, seed, report)
        transformers_logging.disable_progress_bar()
        model.save_pretrained(str(stage))
        for path in plan.iterdir():
            if path.name != MANIFEST:
                shutil.copyfile(path, stage / path.name)

    return made_once(home() / "models" / f"fresh-{key_of(about)}", make, report)


def begin(model: PreTrainedModel, fresh: FreshConfig, seed: int, progress: Progress = silent) -> None:
    """Give a model without memory its first weights, in fp32 on the CPU."""
    total, done = model.num_parameters(), 0
    for name, parameter in list(model.named_parameters()):
        put(model, name, nn.Parameter(first_weight(name, tuple(parameter.shape), fresh, seed)))
        done += parameter.numel()
        progress("drawing weights", done / total)
    model.tie_weights()


def put(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    module, _, last = name.rpartition(".")
    model.get_submodule(module).register_parameter(last, parameter)


def first_weight(name: str, shape: tuple[int, ...], fresh: FreshConfig, seed: int) -> Tensor:
    """One tensor, from the seed and its own name: neither order nor threads nor the others matter."""
    module = name.removesuffix(".weight").rpartition(".")[2]
    if len(shape) == 1:
        return torch.full(shape, first_gain(module, fresh))
    own = hashlib.sha256(name.encode()).digest()[:16]
    drawn = np.random.default_rng([seed, *own]).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(drawn).mul_(deviation_of(name, module, fresh))


def first_gain(module: str, fresh: FreshConfig) -> float:
    """1 in effect; of norms behind the halves of a layer what would be in the matrices before them, which they undo.

    arXiv:2504.07866 section 3.2 for norms on both sides.
    """
    is_scaled = fresh.residual == "scaled" and module in fresh.kind.behind
    gain = added_share(fresh) if is_scaled else 1.0
    return gain - 1 if fresh.kind.centred else gain


def deviation_of(name: str, module: str, fresh: FreshConfig) -> float:
    if EMBEDDING.search(name):  # what enters the first layer is meant, which the forward pass may scale
        entering = 1.0 if fresh.embedding == "unit" else fresh.deviation
        return entering / math.sqrt(fresh.hidden) if fresh.kind.scales else entering
    is_scaled = fresh.residual == "scaled" and module in OUTPUTS and not fresh.kind.behind
    return fresh.deviation * (added_share(fresh) if is_scaled else 1.0)


def added_share(fresh: FreshConfig) -> float:
    """Every layer adds twice; so much of it leaves the sum over all layers about as large as one addition."""
    return 1 / math.sqrt(2 * fresh.layers)
