"""Builds the cache of the frozen lowest layers that a recipe asks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tunesmith.data.loader import Builder
from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import UsageError
from tunesmith.models import trunk
from tunesmith.models.forward import base_model, decoder_of
from tunesmith.models.inventory import take_inventory
from tunesmith.models.native import build as kernels
from tunesmith.models.stack import stacked_hash
from tunesmith.paths import home
from tunesmith.planning.trunk import nothing_frozen, obstacle
from tunesmith.recipe import Recipe
from tunesmith.running.references import code_hash
from tunesmith.train.state_cache import StateCache
from tunesmith.train.trunk import Trunk


def build_trunk(
    recipe: Recipe, base: Path, model: nn.Module, build: Builder, mesh: Mesh, progress: Callable[[int, int], None]
) -> Trunk | None:
    """The filled trunk of the training data, None when it is off.

    Raises UsageError E197 when training cannot begin above it, MachineError E198 when its states have no room.
    """
    if recipe.train.cache_trunk == "off":
        return None
    inside, inventory = base_model(model), take_inventory(base, build.task.outputs)
    found, count = obstacle(recipe, inventory), 0
    if found is None:
        count = trunk.frozen_layers(trunk.layers_of(decoder_of(model)), inside.get_input_embeddings())
        found = None if count else nothing_frozen(recipe, inventory)
    if found is not None:
        raise UsageError(found.code, found.message, where=found.where, evidence=found.evidence, fixes=found.fixes)
    plain = Builder(build.prepared, build.task, share=build.share)  # mismatched prompts have no part in it
    limit = recipe.train.microbatch_limit(mesh.device().type)
    folder = None
    if recipe.train.cache_trunk == "disk":
        folder = home() / "trunk" / trunk_key(recipe, base, inside.dtype, plain, count, mesh)
    width = inside.config.hidden_size * inside.dtype.itemsize
    cache = mesh.first_then_others(lambda: StateCache(folder, build.prepared.lengths, width))
    made = Trunk(model, count, plain, limit, cache)
    made.fill(mesh, progress)
    return made


def trunk_key(recipe: Recipe, base: Path, dtype: torch.dtype, build: Builder, count: int, mesh: Mesh) -> str:
    """sha256 over everything that decides a state to its last bit; what is trained above is no part of it."""
    device = mesh.device().type
    parts = [
        stacked_hash(base, recipe.model.merged_adapters),
        count,
        build.prepared.key,
        build.task.reads,
        build.share,
        recipe.train.microbatch_limit(device),
        str(dtype),
        recipe.model.attention,
        recipe.model.base_products,
        recipe.model.quantization.model_dump(),
        device,
        torch.__version__,
        torch.get_num_threads(),
        code_hash(),
        kernels.state(),
        kernels.processor(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
