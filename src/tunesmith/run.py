"""A run executed: a recipe becomes a directory that holds a trained model."""

from __future__ import annotations

import random
import sys
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tunesmith.data.config import SourceConfig
from tunesmith.data.entries import read_entries
from tunesmith.data.loader import OfflineSource
from tunesmith.data.packing import batch_of
from tunesmith.data.prepared import Prepared, prepare
from tunesmith.data.probes import check_template
from tunesmith.data.tally import Tally
from tunesmith.data.tokenizer import Tokenizer, load_tokenizer
from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import TunesmithError
from tunesmith.evaluate.harness import evaluate, write_rows
from tunesmith.models.adapters import trainable
from tunesmith.models.checkpointing import checkpoint_layers
from tunesmith.models.config import LoraConfig
from tunesmith.models.forward import base_model
from tunesmith.models.headers import base_hash
from tunesmith.models.load import PROVEN, load_model
from tunesmith.models.locate import locate
from tunesmith.models.save import save_weights
from tunesmith.models.verify import verify_scores
from tunesmith.recipe import Recipe, to_yaml, with_absolute_paths
from tunesmith.rollout.fixed_prompts import FixedPrompts
from tunesmith.track.hardware import describe_machine
from tunesmith.track.outcome import FINISH
from tunesmith.track.progress import Progress
from tunesmith.track.run_dir import RunDir
from tunesmith.track.status import State
from tunesmith.track.tracker import NullTracker, Tracking, open_tracker
from tunesmith.train.checkpoint import CheckpointStore
from tunesmith.train.commit import Writers
from tunesmith.train.evaluation_loss import evaluation_loss
from tunesmith.train.loop import Loop, Parts, Position, check_same, without
from tunesmith.train.measure import peak_memory_bytes
from tunesmith.train.optimizer import Optimizer
from tunesmith.train.signals import Signals
from tunesmith.train.stability import Guard
from tunesmith.types import Conversation, Message

STOPPED: dict[int, State] = {75: "preempted", 130: "stopped"}
DATA_HASH = "data hash"
HASHED = ("data.train", "data.eval", "model.path", "model.adapter_path")  # compared by content, not by name
FREE_TO_CHANGE = ("run.", "evaluate.", "train.checkpoint.", "train.evaluate_every", "train.sample_", "train.threads")


@dataclass(frozen=True, slots=True)
class RunResult:
    """What `tunesmith train --json` prints; seconds and tokens per second are of the steps alone."""

    run: str
    steps: int
    tokens: int
    scored_tokens: int
    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    first_loss: float | None
    last_loss: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run starts from: the base folder, its tokenizer, and prepared examples."""

    base: Path
    tokenizer: Tokenizer
    train: Prepared
    eval: Prepared | None


@dataclass(frozen=True, slots=True)
class Context:
    """What a run writes to and shows itself on."""

    run: RunDir
    mesh: Mesh
    tracker: Tracking
    display: Progress
    plan: dict[str, Any] | None
    accept_data_change: bool


def execute(
    recipe: Recipe,
    run: RunDir,
    mesh: Mesh,
    display: Progress,
    *,
    plan: dict[str, Any] | None = None,
    accept_data_change: bool = False,
) -> RunResult:
    """Train in `run`, from its newest valid checkpoint when it has one; every rank calls it with the same arguments.

    A resume refuses other settings, data or base weights than the run began with (CheckpointError E116); other data may
    be accepted. Raises Preempted or Interrupted after a signal was answered with a checkpoint.
    """
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    with run.lock() if mesh.is_first else nullcontext(), Signals() as signals:
        tracker = begin_tracking(recipe, run) if mesh.is_first else NullTracker()
        state: State = "failed"
        code = 1
        try:
            around = Context(run, mesh, tracker, display, plan, accept_data_change)
            result = train(recipe, around, signals)
            state, code = "finished", 0
        except SystemExit as error:
            state, code = "stopped", int(error.code or 0)
            raise
        except Exception as error:
            if not isinstance(error, TunesmithError):
                trace = run.crash(traceback.format_exc())
                tracker.event("crash", {"message": f"{type(error).__name__}: {error}", "traceback": str(trace)})
                raise
            state, code = STOPPED.get(error.exit_code, "failed"), error.exit_code
            tracker.event("stopped", {"diagnostic": error.diagnostic.to_json()})
            raise
        finally:
            tracker.finish(state, code)
    return result


def begin_tracking(recipe: Recipe, run: RunDir) -> Tracking:
    return open_tracker(run, recipe.run.report_to, run.next_attempt(), recipe.model_dump(mode="json"))


def train(recipe: Recipe, around: Context, signals: Signals) -> RunResult:
    run, mesh, tracker, display = around.run, around.mesh, around.tracker, around.display
    inputs = gather_inputs(recipe, mesh, display)
    for warning in input_warnings(inputs):
        display.message(warning)
        tracker.text(warning)
        tracker.event("warning", {"message": warning})
    ignore = (DATA_HASH,) if around.accept_data_change else ()
    if mesh.is_first and run.run_file.exists():
        check_identity(run, recipe, inputs, ignore)
    elif mesh.is_first:
        describe_run(run, recipe, inputs, mesh, around.plan)
    display.phase("loading the model")
    loop = build_loop(recipe, inputs, around)
    resume(loop, around)
    tracker.status("running", total=loop.parts.total, phase="train")
    loop.parts.on_step = tell_steps(around)
    position = loop.run(signals)
    tracker.status("saving", phase="save")
    finish(loop, run, inputs.base, mesh)
    result = summarise(run, position, mesh)
    tracker.event(FINISH, result.to_json())
    if recipe.evaluate.data and mesh.is_first:
        tracker.status("running", phase="evaluate")
        measure(loop.parts.model, recipe, inputs.tokenizer, around)
    return result


def tell_steps(around: Context) -> Callable[[int, int, dict[str, float]], None]:
    """Every step on the display, and as a line of `log.txt`."""

    def tell(step: int, total: int, values: dict[str, float]) -> None:
        around.display.step(step, total, values)
        speed = values["perf/tok_s"]
        around.tracker.text(f"step {step}/{total} loss {values['train/loss']:.4f} {speed:.0f} tokens/s")

    return tell


def measure(model: nn.Module, recipe: Recipe, tokenizer: Tokenizer, around: Context) -> None:
    """Score the trained model on `evaluate.data`; the scores are an event, the answers stand in `answers.jsonl`."""

    def told(task: str, done: int, total: int) -> None:
        around.display.phase(f"answering {task}", done, total)

    evaluation = evaluate(model, tokenizer, recipe.evaluate, recipe.data, on_progress=told)
    write_rows(evaluation.rows, around.run.path / "answers.jsonl")
    around.tracker.event("evaluation", {"scores": evaluation.to_json()})


def gather_inputs(recipe: Recipe, mesh: Mesh, display: Progress) -> Inputs:
    """Fetch the model folder and prepare the data; the first rank works, the others read what it wrote."""

    def gather() -> Inputs:
        display.phase("fetching the model")
        base = locate(recipe.model.path, recipe.model.revision)
        tokenizer = load_tokenizer(base)
        display.phase("preparing the data")
        train = prepare(
            recipe.data.train, recipe.data, tokenizer, lambda done: display.phase("preparing the data", done)
        )
        held_out = prepare(recipe.data.eval, recipe.data, tokenizer) if recipe.data.eval else None
        for source in recipe.evaluate.data:  # faults are told before the training, not after it
            deque(read_entries(source, Tally(recipe.data.on_bad), recipe.evaluate.limit), maxlen=0)
        return Inputs(base, tokenizer, train, held_out)

    return mesh.first_then_others(gather)


def input_warnings(inputs: Inputs) -> list[str]:
    """What the user should know of data and template before the model is loaded."""
    found = [str(warning) for warning in check_template(inputs.tokenizer)] if inputs.tokenizer.has_template else []
    held_out = () if inputs.eval is None else inputs.eval.report.warnings
    return [*found, *inputs.train.report.warnings, *held_out]


def describe_run(run: RunDir, recipe: Recipe, inputs: Inputs, mesh: Mesh, plan: dict[str, Any] | None) -> None:
    """Write the recipe, the plan, and last `run.json`: a run killed in between writes them all again."""
    run.write_config(to_yaml(with_absolute_paths(recipe)))
    if plan is not None:
        run.write_plan(plan)
    run.write_run(
        {
            "argv": sys.argv,
            "seed": recipe.train.seed,
            "method": recipe.model.adapter.method,
            "objective": recipe.objective.name,
            "model": {"path": recipe.model.path, "folder": str(inputs.base), "hash": base_hash(inputs.base)},
            "data": {"hash": inputs.train.key, **asdict(inputs.train.report)},
            "ranks": mesh.world,
            "threads": torch.get_num_threads(),
            "identity": identity(recipe, inputs),
            **describe_machine(),
        }
    )


def build_loop(recipe: Recipe, inputs: Inputs, around: Context) -> Loop:
    settings, mesh, tracker = recipe.train, around.mesh, around.tracker
    seed_everything(settings.seed)
    model = build_model(recipe, inputs, mesh, around.plan)
    source = build_source(recipe, inputs.train, mesh)
    held_out = inputs.eval
    seed_everything(settings.seed + 1 + mesh.rank)
    adapter = recipe.model.adapter
    new_layers = adapter.modules_to_save if isinstance(adapter, LoraConfig) else ()
    parts = Parts(
        model=model,
        objective=recipe.objective,
        source=source,
        optimizer=Optimizer(trainable(model), settings.optimizer, new_layers),
        guard=Guard(settings.stability),
        store=CheckpointStore(around.run.checkpoints, settings.checkpoint.keep, writers(mesh)),
        tracker=tracker,
        mesh=mesh,
        settings=settings,
        total=settings.steps or source.steps_for(settings.epochs),
        evaluate=None
        if held_out is None
        else lambda: evaluation_loss(model, held_out, settings.microbatch_limit(mesh.device().type), mesh),
        show_samples=fixed_prompts(recipe, model, inputs.tokenizer, tracker) if mesh.is_first else None,
        about=identity(recipe, inputs),
    )
    return Loop(parts)


def build_model(recipe: Recipe, inputs: Inputs, mesh: Mesh, plan: dict[str, Any] | None) -> nn.Module:
    """The model on its device, checked against transformers when its architecture is not among the proven ones."""
    model = load_model(inputs.base, recipe.model, mesh.device())
    base = base_model(model)
    if base.config.model_type not in PROVEN or mesh.device().type == "cuda":
        shortest = np.argsort(inputs.train.lengths, kind="stable")[:2]
        verify_scores(model, batch_of([inputs.train[int(index)] for index in shortest]).to(mesh.device()))
    wanted = recipe.train.activation_checkpointing
    planned = int((plan or {}).get("checkpointed_layers", 0))
    layers = {"off": 0, "auto": planned, "full": 10**6}[wanted]
    checkpoint_layers(model, layers)
    return model


def build_source(recipe: Recipe, train: Prepared, mesh: Mesh) -> OfflineSource:
    settings = recipe.train
    return OfflineSource(
        train,
        [source.weight for source in recipe.data.train],
        sequences_per_step=settings.sequences_per_step,
        tokens_per_step=settings.tokens_per_step,
        microbatch_tokens=settings.microbatch_limit(mesh.device().type),
        seed=settings.seed if recipe.data.shuffle else None,
        share=(mesh.rank, mesh.world),
    )


def fixed_prompts(recipe: Recipe, model: nn.Module, tokenizer: Tokenizer, tracker: Tracking) -> FixedPrompts | None:
    """The prompts of `train.sample_prompts`, or the first three of the evaluation (else training) records."""
    if recipe.train.sample_every == 0:
        return None
    given = [(Message("user", text),) for text in recipe.train.sample_prompts]
    chats = given or first_prompts((*recipe.data.eval, *recipe.data.train)[0], 3)
    shown = [(messages[-1].content, tokenizer.prompt_ids(messages)) for messages in chats]
    return FixedPrompts(model, tokenizer, shown, tracker) if shown else None


def first_prompts(source: SourceConfig, count: int) -> list[tuple[Message, ...]]:
    """What stands before the last answer in the first conversations of a source."""
    entries = read_entries(source, Tally("skip"), count)
    return [entry.messages[:-1] for entry in entries if isinstance(entry, Conversation)]


def resume(loop: Loop, around: Context) -> None:
    """Continue from the newest valid checkpoint, if there is one; damaged newer ones are reported."""
    if around.mesh.is_first:
        loop.parts.store.clean()
    around.mesh.barrier()
    checkpoint = loop.parts.store.newest()
    if checkpoint is None:
        return
    for skipped in checkpoint.skipped:
        around.tracker.event("warning", skipped.to_json())
    loop.resume(checkpoint, ignore=(DATA_HASH,) if around.accept_data_change else ())
    around.tracker.heal(loop.position.step + 1)


def finish(loop: Loop, run: RunDir, base: Path, mesh: Mesh) -> None:
    """Write the final weights: the best ones when early stopping was asked for, else the last ones."""
    best = loop.parts.store.best() if loop.parts.settings.early_stopping is not None else None
    if best is not None and best.step != loop.position.step:
        weights = best.tensors("weights")
        for name, parameter in loop.parts.optimizer.parameters.items():
            parameter.data.copy_(weights[name])
        loop.parts.tracker.event("best_weights", {"step": best.step})
    if mesh.is_first:
        save_weights(loop.parts.model, run.path, base)
    mesh.barrier()


def summarise(run: RunDir, position: Position, mesh: Mesh) -> RunResult:
    return RunResult(
        run=str(run.path),
        steps=position.step,
        tokens=position.tokens,
        scored_tokens=round(position.scored),
        seconds=position.seconds,
        tokens_per_second=position.tokens / position.seconds if position.seconds else 0.0,
        peak_memory_bytes=int(mesh.largest(peak_memory_bytes(mesh.device()))),
        first_loss=position.first_loss,
        last_loss=position.last_loss,
    )


def identity(recipe: Recipe, inputs: Inputs) -> dict[str, Any]:
    """The flat settings that a resume must find unchanged, with hashes of the data and the base weights."""
    flat = {
        key: value
        for key, value in flatten(recipe.model_dump(mode="json")).items()
        if not key.startswith(FREE_TO_CHANGE) and key not in HASHED
    }
    return {
        **flat,
        DATA_HASH: inputs.train.key,
        "evaluation data hash": None if inputs.eval is None else inputs.eval.key,
        "source weights": [source.weight for source in recipe.data.train],
        "base hash": base_hash(inputs.base),
    }


def check_identity(run: RunDir, recipe: Recipe, inputs: Inputs, ignore: tuple[str, ...]) -> None:
    """A run goes on only as what it began as, also when it has no checkpoint yet."""
    began = run.read_run().get("identity")
    if began is not None:
        check_same(without(began, ignore), without(identity(recipe, inputs), ignore))


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def writers(mesh: Mesh) -> Writers:
    return Writers(mesh.rank, mesh.world, mesh.all_agree, mesh.share(Writers().token if mesh.is_first else None))
