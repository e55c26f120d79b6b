"""Builds the reference that a recipe asks for, and the caches of its log-probabilities."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tunesmith import models
from tunesmith.data.loader import Builder, Microbatches, OfflineSource
from tunesmith.data.mismatch import Mismatch
from tunesmith.data.prepared import Prepared
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.distributed.mesh import Mesh
from tunesmith.export.opening import reference_settings
from tunesmith.models.adapters import Adapted
from tunesmith.models.content import content_hash
from tunesmith.models.load import load_base
from tunesmith.models.locate import locate
from tunesmith.models.loftq_config import LoftqConfig
from tunesmith.models.native import build as kernels
from tunesmith.models.prompt_config import begins_as_base
from tunesmith.models.reference import AdapterOff, Computed, OtherModel, Reference, StartWeights
from tunesmith.models.stack import stacked_hash
from tunesmith.paths import home
from tunesmith.planning.reference import find_reference
from tunesmith.recipe import Recipe
from tunesmith.train.stream_cache import StreamCache
from tunesmith.train.streams import Streams

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Referee:
    """A recipe's reference: how it is computed now, its name in caches, and whether it is computed before training."""

    reference: Reference
    key: str
    equals_start: bool
    ahead: bool  # all figures are computed before the first step, because the reference is gone afterwards


def find_referee(recipe: Recipe, model: nn.Module, base: Path, tokenizer: Tokenizer, mesh: Mesh) -> Referee:
    """The cheapest reference that is exactly what the recipe says; `model` holds its starting weights.

    Raises ModelError E282 when a reference of its own has another vocabulary.
    """
    settings, key = recipe.model.reference, start_key(recipe, base)
    folder = find_reference(recipe, tokenizer)
    if folder is not None:
        return Referee(other_model(folder, recipe, mesh), content_hash(folder), False, True)
    is_new = recipe.model.adapter_path is None and not isinstance(recipe.model.adapter, LoftqConfig)
    new_adapter = isinstance(model, Adapted) and is_new  # below LoftQ's the base is another model
    if isinstance(model, Adapted) and (settings.source == "adapter_off" or (new_adapter and not settings.update_every)):
        below = stacked_hash(base, recipe.model.merged_adapters)
        is_start = new_adapter and begins_as_base(recipe.model.adapter)
        return Referee(AdapterOff(model), f"base {below}", is_start, False)
    if recipe.model.adapter.kept == "adapter" or settings.update_every or recipe.compares_distributions:
        return Referee(StartWeights(model), key, True, False)
    return Referee(OtherModel(model), key, True, True)


def start_key(recipe: Recipe, base: Path) -> str:
    adapter = recipe.model.adapter_path
    whole = stacked_hash(base, recipe.model.merged_adapters)
    return f"start {whole} {'' if adapter is None else content_hash(locate(adapter))}"


def other_model(folder: Path, recipe: Recipe, mesh: Mesh) -> OtherModel:
    return OtherModel(load_base(folder, reference_settings(recipe.model, folder), mesh.device()).eval())


def build_streams(
    recipe: Recipe, referee: Referee, build: Builder, shaping: str, mesh: Mesh, progress: Progress | None = None
) -> Streams:
    """The streams of one data set; `shaping` names what orders it: packing decides the last bits of a figure."""
    settings = recipe.model.reference
    streams = Streams(
        reference=referee.reference,
        equals_start=referee.equals_start,
        update_every=settings.update_every,
        update_mix=mixture(recipe),
        joint=None if build.mismatch is None else build.joint,
    )
    if settings.update_every:
        return streams
    key = cache_key(recipe, referee, build, "" if referee.ahead else shaping, mesh)
    folder = home() / "reference" / key
    counts = scored_counts(build.prepared)
    cache = StreamCache(folder, counts)
    other = None
    if build.mismatch is not None:
        other = StreamCache(folder / "mismatched", mismatched_counts(build.mismatch))
    streams = replace(streams, cache=cache, mismatched=other)
    if referee.ahead:
        fill(streams, Microbatches(build, recipe.train.microbatch_limit(mesh.device().type)), mesh, progress)
        streams = replace(streams, reference=Computed())
    return streams


def mixture(recipe: Recipe) -> float:
    """Share of the policy in a moved reference: adapters cannot be mixed in parts, so theirs is replaced."""
    given = recipe.model.reference.update_mix
    if given is not None:
        return given
    return 1.0 if recipe.model.adapter.kept == "adapter" else 0.6


def fill(streams: Streams, microbatches: Microbatches, mesh: Mesh, progress: Progress | None) -> None:
    """Compute what is missing, each rank its share."""
    assert streams.cache is not None
    missing = set(streams.cache.missing())
    if streams.mismatched is not None:
        missing |= set(streams.mismatched.missing())
    mesh.barrier()
    wanted = [index for index, group in enumerate(microbatches.groups) if not missing.isdisjoint(group)]
    mine = wanted[mesh.rank :: mesh.world]
    for done, index in enumerate(mine, 1):
        streams.attach(microbatches[index].to(mesh.device()))
        if progress is not None:
            progress(done, len(mine))
    mesh.barrier()


def mend(streams: Streams, source: OfflineSource, steps: int, mesh: Mesh) -> None:
    """Fill again what the first `steps` steps had filled, in the same microbatches: the same figures to the last bit.

    `source` stands at the beginning; where nothing is missing nothing is computed.
    """
    if streams.cache is None:
        return
    missing = set(streams.cache.missing())
    if streams.mismatched is not None:
        missing |= set(streams.mismatched.missing())
    for _ in range(steps):
        for group in source.next_groups():
            if not missing.isdisjoint(group):
                streams.attach(source.build(group).to(mesh.device()))
                missing.difference_update(group)


def scored_counts(prepared: Prepared) -> np.ndarray:
    """Scored tokens of every example."""
    scored = np.concatenate([[0], np.cumsum(np.asarray(prepared.weights) != 0, dtype=np.int64)])
    return np.diff(scored[np.asarray(prepared.offsets)])


def mismatched_counts(mismatch: Mismatch) -> np.ndarray:
    """Scored tokens of every prompt's answer to another prompt, of which a long prompt may leave only the beginning."""
    counts = scored_counts(mismatch.prepared)[mismatch.partners]
    for index in mismatch.cut:
        counts[index] = np.count_nonzero(mismatch.example(index).weights)
    return counts


def cache_key(recipe: Recipe, referee: Referee, build: Builder, shaping: str, mesh: Mesh) -> str:
    """sha256 over everything that decides a figure to its last bit."""
    device = mesh.device()
    parts = [
        referee.key,
        build.prepared.key,
        build.share,
        shaping,
        recipe.train.microbatch_limit(device.type),
        recipe.model.dtype,
        recipe.model.attention,
        recipe.model.base_products,
        None if recipe.train.fp8 is None else recipe.train.fp8.model_dump(),
        recipe.model.quantization.model_dump(),
        [*recipe.model.new_tokens, recipe.model.new_tokens_begin] if recipe.model.new_tokens else [],
        device.type,
        mesh.world,
        torch.__version__,
        torch.get_num_threads(),
        code_hash(),
        kernels.state(),
        kernels.processor(),
        [] if build.mismatch is None else hashlib.sha256(build.mismatch.partners.tobytes()).hexdigest(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def code_hash() -> str:
    """Hash of the code that computes log-probabilities."""
    total = hashlib.sha256()
    folder = Path(models.__file__).parent
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.cpp")]):
        total.update(path.read_bytes())
    return total.hexdigest()
