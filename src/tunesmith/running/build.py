"""A recipe and its inputs become the loop that trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tunesmith.data.ahead import Ahead
from tunesmith.data.config import SourceConfig
from tunesmith.data.entries import read_entries
from tunesmith.data.loader import Builder, Microbatches, OfflineSource
from tunesmith.data.mismatch import Mismatch
from tunesmith.data.mixing import Mixture
from tunesmith.data.packing import batch_of
from tunesmith.data.prepared import Prepared
from tunesmith.data.tally import Tally
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import Diagnostic
from tunesmith.models.adapters import trainable
from tunesmith.models.base_products import use_products
from tunesmith.models.checkpointing import checkpoint_layers
from tunesmith.models.forward import base_model
from tunesmith.models.fp8_layers import use_fp8
from tunesmith.models.heads import head_modules
from tunesmith.models.inventory import take_inventory
from tunesmith.models.load import PROVEN, load_model
from tunesmith.models.noise import silence
from tunesmith.models.policy import Checkpointing, everywhere
from tunesmith.models.verify import verify_scores
from tunesmith.planning.sharing import shares_prefixes
from tunesmith.recipe import Recipe
from tunesmith.rollout.fixed_prompts import FixedPrompts
from tunesmith.running.guards import general_loss, guessed_loss, make_pull, streams_of
from tunesmith.running.identity import known_settings
from tunesmith.running.inputs import Inputs
from tunesmith.running.references import find_referee
from tunesmith.running.speed import work_of
from tunesmith.running.trunk import build_trunk
from tunesmith.running.tuning import build_tuning
from tunesmith.track.mounts import renames_folders
from tunesmith.track.progress import Progress
from tunesmith.track.run_dir import RunDir
from tunesmith.track.tracker import Tracking
from tunesmith.train.checkpoint import CheckpointStore
from tunesmith.train.commit import Writers
from tunesmith.train.config import CheckpointConfig
from tunesmith.train.ema import Average
from tunesmith.train.evaluation_loss import HeldOut, evaluation_loss
from tunesmith.train.in_backward import make_optimizer
from tunesmith.train.loop import Loop, Parts
from tunesmith.train.loss_scale import LossScale
from tunesmith.train.random_state import seed_everything
from tunesmith.train.stability import Guard
from tunesmith.train.streams import Streams
from tunesmith.types import Conversation, Example, Feedback, Kind, Message, Pair, Ranking


@dataclass(frozen=True, slots=True)
class Context:
    """What a run writes to and shows itself on."""

    run: RunDir
    mesh: Mesh
    tracker: Tracking
    display: Progress
    plan: dict[str, Any] | None
    accept_data_change: bool

    def warn(self, diagnostic: Diagnostic) -> None:
        """Tell the user while the run goes on, and keep it."""
        if self.mesh.is_first:
            self.display.message(str(diagnostic))
            self.tracker.text(str(diagnostic))
            self.tracker.event("warning", diagnostic.to_json())


def build_loop(recipe: Recipe, inputs: Inputs, around: Context, about: dict[str, Any]) -> Loop:
    """`about` is what a checkpoint says of the run, for a resume to find unchanged."""
    settings, mesh, tracker = recipe.train, around.mesh, around.tracker
    seed_everything(settings.seed)
    model = build_model(recipe, inputs, mesh, around.plan)
    if recipe.compares and (silenced := silence(model)):
        told = f"dropout in {silenced} layers is switched off: {recipe.objective.title} compares log-probabilities"
        around.display.message(told)
        tracker.text(told)
    source = build_source(recipe, inputs, mesh)
    streams, held_out = attach_streams(recipe, inputs, model, source, around)
    seed_everything(settings.seed + 1 + mesh.rank)
    objectives = recipe.objectives
    inventory = take_inventory(inputs.base, inputs.task.outputs)
    rule = settings.optimizer.for_heads(inventory.head_dim)
    total = settings.steps or source.steps_for(settings.epochs)
    tuning, trained = build_tuning(recipe, model, total), trainable(model)
    layers = new_layers(recipe, model)
    folder = around.run.path
    optimizer = tuning.start(trained, lambda chosen: make_optimizer(chosen, rule, layers, mesh, settings.seed, folder))
    if settings.ema is not None:
        optimizer.average = Average(optimizer.masters, settings.ema)
    parts = Parts(
        model=model,
        objectives=objectives,
        source=Ahead(source),
        streams=streams,
        tuning=tuning,
        trained=trained,
        optimizer=optimizer,
        guard=Guard(settings.stability, guessed_loss(objectives, inventory.vocabulary)),
        scale=LossScale(settings.loss_scale) if base_model(model).dtype == torch.float16 else None,
        store=checkpoint_store(around.run.checkpoints, settings.checkpoint, writers(mesh)),
        tracker=tracker,
        mesh=mesh,
        settings=settings,
        total=total,
        work=work_of(recipe, inputs, model, mesh),
        evaluate=None if held_out is None else lambda *how: evaluation_loss(model, held_out, objectives, *how),
        measure_general=general_loss(recipe, inputs, model, mesh),
        show_samples=fixed_prompts(recipe, model, inputs.tokenizer, tracker) if mesh.is_first else None,
        warn=around.warn,
        pull=make_pull(recipe, model, optimizer),
        about=about,
        known=known_settings(recipe),
    )
    return Loop(parts)


def build_model(recipe: Recipe, inputs: Inputs, mesh: Mesh, plan: dict[str, Any] | None) -> nn.Module:
    """The model on its device, checked against transformers when its architecture is not among the proven ones."""
    model = load_model(inputs.base, recipe.model, mesh.device(), inputs.task.outputs)
    base = base_model(model)
    if base.config.model_type not in PROVEN or mesh.device().type == "cuda":
        shortest = np.argsort(inputs.train.lengths, kind="stable")[:2]
        examples = [inputs.train[int(index)] for index in shortest]
        flat = inputs.task.reads == "logprobs"
        probe = batch_of([first_answer(one) if flat else one for one in examples], inputs.task.reads)
        verify_scores(model, probe.to(mesh.device()))
    wanted = recipe.train.activation_checkpointing
    planned = Checkpointing.of_json((plan or {}).get("checkpointing", {}))
    checkpoint_layers(model, planned if wanted == "auto" else everywhere(wanted))
    use_products(model, recipe.model.base_products)
    use_fp8(model, recipe.train.fp8)
    return model


def new_layers(recipe: Recipe, model: nn.Module) -> tuple[str, ...]:
    """Modules that may learn at a rate of their own: those trained in full beside an adapter, and heads of values."""
    return (*recipe.model.adapter.saved, *(name.rpartition(".")[2] for name in head_modules(base_model(model))))


def first_answer(example: Example) -> Example:
    """The prompt with its first answer as one plain sequence."""
    if not example.cuts:
        return example
    end = (*example.cuts, len(example))[1]
    return Example(example.tokens[:end], example.weights[:end], example.file, example.line)


def build_batches(recipe: Recipe, inputs: Inputs, prepared: Prepared) -> Builder:
    """How examples of a set become batches; KTO's come with mismatched prompts."""
    mismatch = Mismatch(prepared, recipe.train.seed) if inputs.task.mismatches else None
    general = recipe.data.general
    mixture = Mixture(len(recipe.data.train), general.share) if general.train and prepared is inputs.train else None
    return Builder(prepared, inputs.task, mismatch, share=shares_prefixes(recipe, inputs.base), mixture=mixture)


def build_source(recipe: Recipe, inputs: Inputs, mesh: Mesh) -> OfflineSource:
    settings = recipe.train
    return OfflineSource(
        build_batches(recipe, inputs, inputs.train),
        [source.weight for source in recipe.data.trained],
        sequences_per_step=settings.sequences_per_step,
        tokens_per_step=settings.tokens_per_step,
        microbatch_tokens=settings.microbatch_limit(mesh.device().type),
        seed=settings.seed if recipe.data.shuffle else None,
        share=(mesh.rank, mesh.world),
    )


def attach_streams(
    recipe: Recipe, inputs: Inputs, model: nn.Module, source: OfflineSource, around: Context
) -> tuple[Streams, HeldOut | None]:
    """The streams of the training data, and the held-out data with its own."""
    mesh = around.mesh
    held_out = None
    if inputs.eval is not None:
        limit = recipe.train.microbatch_limit(mesh.device().type)
        held_out = Microbatches(build_batches(recipe, inputs, inputs.eval), limit)
    trunk = build_trunk(recipe, inputs.base, model, source.build, mesh, phase(around, "computing the frozen layers"))
    if not recipe.has_reference and not recipe.compares_distributions:
        return Streams(trunk=trunk), None if held_out is None else HeldOut(held_out, Streams(), mesh)
    told = phase(around, "computing the reference")
    referee = find_referee(recipe, model, inputs.base, inputs.tokenizer, mesh)
    streams = streams_of(recipe, referee, source.build, source.fingerprint(), mesh, told)
    streams = replace(streams, trunk=trunk)
    if held_out is None:
        return streams, None
    return streams, HeldOut(held_out, streams_of(recipe, referee, held_out.build, "held out", mesh, told), mesh)


def phase(around: Context, words: str) -> Callable[[int, int], None]:
    """Shows how far something is that comes before the steps."""

    def told(done: int, total: int) -> None:
        around.display.phase(words, done, total)

    return told


def fixed_prompts(recipe: Recipe, model: nn.Module, tokenizer: Tokenizer, tracker: Tracking) -> FixedPrompts | None:
    """The prompts of `train.sample_prompts`, or the first three of the evaluation (else training) records."""
    if recipe.train.sample_every == 0 or recipe.task.reads == "values":
        return None
    given = [(Message("user", text),) for text in recipe.train.sample_prompts]
    chats = given or first_prompts((*recipe.data.eval, *recipe.data.train)[0], 3, recipe.task.kind)
    shown = [(messages[-1].content, tokenizer.prompt_ids(messages)) for messages in chats]
    return FixedPrompts(model, tokenizer, shown, tracker) if shown else None


def first_prompts(source: SourceConfig, count: int, kind: Kind) -> list[tuple[Message, ...]]:
    """What stands before the last answer in the first chats of a source."""
    found: list[tuple[Message, ...]] = []
    for entry in read_entries(source, Tally("skip"), count, kind):
        if isinstance(entry, Conversation):
            found.append(entry.messages[:-1])
        elif isinstance(entry, Pair | Feedback | Ranking) and not isinstance(entry.prompt, str):
            found.append(entry.prompt)
    return found


def checkpoint_store(folder: Path, settings: CheckpointConfig, writers: Writers) -> CheckpointStore:
    in_place = not renames_folders(folder) if settings.commit == "auto" else settings.commit == "marker"
    return CheckpointStore(folder, settings.keep, writers, in_place=in_place)


def writers(mesh: Mesh) -> Writers:
    return Writers(mesh.rank, mesh.world, mesh.all_agree, mesh.share(Writers().token if mesh.is_first else None))
