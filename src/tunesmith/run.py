"""A run executed: a recipe becomes a directory that holds a trained model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.distributed.mesh import Mesh
from tunesmith.evaluate.harness import evaluate, write_rows
from tunesmith.evaluate.scoring import centre
from tunesmith.evaluate.values import evaluate_values
from tunesmith.models.base_products import exact_again
from tunesmith.models.content import content_hash
from tunesmith.models.fp8_layers import exact_products
from tunesmith.models.load import load_base
from tunesmith.models.meaning import meaning_of
from tunesmith.models.reference import Computed
from tunesmith.models.save import save_weights, sweep_stages
from tunesmith.models.stack import find_stack
from tunesmith.recipe import Recipe, to_yaml, with_absolute_paths
from tunesmith.recipe.gone import AT_DEFAULT
from tunesmith.running.agreement import compare
from tunesmith.running.attempt import attempt
from tunesmith.running.build import Context, build_loop, build_source
from tunesmith.running.determinism import deterministic
from tunesmith.running.identity import DATA_HASH, at_default, check_identity, identity
from tunesmith.running.inputs import Inputs, gather_inputs, input_warnings, sized
from tunesmith.running.layers import tell_layers
from tunesmith.running.profile import profiled
from tunesmith.running.references import mend
from tunesmith.track.hardware import describe_machine
from tunesmith.track.outcome import FINISH
from tunesmith.track.progress import Progress
from tunesmith.track.reader import read_lines, read_metrics
from tunesmith.track.run_dir import RunDir
from tunesmith.track.tracker import Tracking
from tunesmith.train.checkpoint import other_ranks, other_versions
from tunesmith.train.loop import Loop
from tunesmith.train.measure import peak_memory_bytes
from tunesmith.train.position import Position
from tunesmith.train.signals import Cut, Poll, Signals, unmeasured_error

CENTRING = 256  # examples, at most, whose mean reward is told as 0


@dataclass(frozen=True, slots=True)
class RunResult:
    """What `tunesmith train --json` prints; seconds and tokens per second are of the steps alone.

    `tokens` are those of the data; `saved_tokens` of them were not computed again, because examples begin alike.
    """

    run: str
    steps: int
    tokens: int
    scored_tokens: int
    saved_tokens: int
    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    first_loss: float | None
    last_loss: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


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

    def work(tracker: Tracking, signals: Signals) -> RunResult:
        return train(recipe, Context(run, mesh, tracker, display, plan, accept_data_change), signals)

    with deterministic(recipe.train.deterministic):
        return attempt(recipe, run, mesh, work)


def train(recipe: Recipe, around: Context, signals: Signals) -> RunResult:
    run, mesh, tracker, display = around.run, around.mesh, around.tracker, around.display
    inputs = gather_inputs(recipe, mesh, display)
    for warning in input_warnings(inputs):
        display.message(warning)
        tracker.text(warning)
        tracker.event("warning", {"message": warning})
    about = identity(recipe, inputs)
    compare(mesh, about)
    ignore = (DATA_HASH,) if around.accept_data_change else ()
    if mesh.is_first and run.run_file.exists():
        older = check_identity(run, recipe, inputs, ignore)
        if older is not None:  # whoever loaded the recipe has shown it
            tracker.text(str(older))
            tracker.event("warning", older.to_json())
    elif mesh.is_first:
        describe_run(run, recipe, inputs, mesh, around.plan)
    display.phase("loading the model")
    recipe = sized(recipe, inputs, mesh)
    with closing(build_loop(recipe, inputs, around, about)) as loop:
        tell_layers(recipe, loop.parts.model, around)
        resume(loop, recipe, inputs, around)
        tracker.status("running", total=loop.parts.total, phase="train")
        loop.parts.on_step = tell_steps(around)
        with profiled(recipe, inputs, loop, around):
            position = loop.run(signals)
        tracker.status("saving", phase="save")
        weights = finish(loop, run, recipe, inputs, mesh)
    result = summarise(run, position, mesh)
    tracker.event(FINISH, result.to_json())
    if recipe.evaluate.data and mesh.is_first:
        tracker.status("running", phase="evaluate")
        try:
            measure(loop, recipe, inputs, around, signals.poll)
        except Cut:
            raise unmeasured_error(signals, weights, f"tunesmith runs resume {run.path}") from None
    return result


def tell_steps(around: Context) -> Callable[[int, int, dict[str, float]], None]:
    """Every step on the display, and as a line of `log.txt`."""

    def tell(step: int, total: int, values: dict[str, float]) -> None:
        around.display.step(step, total, values)
        speed = f"{values['perf/tok_s']:.0f} tokens/s, MFU {values['perf/mfu']:.0%}"
        around.tracker.text(f"step {step}/{total} loss {values['train/loss']:.4f} {speed}")

    return tell


def measure(loop: Loop, recipe: Recipe, inputs: Inputs, around: Context, poll: Poll) -> None:
    """Score the trained model on `evaluate.data`; the scores are an event, the answers stand in `answers.jsonl`."""

    def told(task: str, done: int, total: int) -> None:
        poll()
        around.display.phase(f"evaluating {task}", done, total)

    poll()
    model, reference = loop.parts.model, loop.parts.streams.reference
    if inputs.task.reads == "values":
        settings = recipe.data.model_copy(update={"limit": recipe.evaluate.limit})
        meaning, sources = meaning_of(inputs.task), recipe.evaluate.data
        scores = evaluate_values(model, inputs.tokenizer, meaning, sources, settings, on_progress=told).to_json()
    else:
        asked = None if isinstance(reference, Computed) else reference
        evaluation = evaluate(model, inputs.tokenizer, recipe.evaluate, recipe.data, reference=asked, on_progress=told)
        write_rows(evaluation.rows, around.run.path / "answers.jsonl", evaluation.pairs)
        scores = evaluation.to_json()
    around.tracker.event("evaluation", {"scores": scores})


def describe_run(run: RunDir, recipe: Recipe, inputs: Inputs, mesh: Mesh, plan: dict[str, Any] | None) -> None:
    """Write the recipe, the plan, and last `run.json`: a run killed in between writes them all again."""
    run.write_config(to_yaml(with_absolute_paths(recipe)))
    if plan is not None:
        run.write_plan(plan)
    begun = recipe.model.path if recipe.model.fresh is None else recipe.model.named
    run.write_run(
        {
            "argv": sys.argv,
            "seed": recipe.train.seed,
            "method": recipe.model.adapter.method,
            "task": asdict(inputs.task),
            "objective": " + ".join(objective.title for objective in recipe.objectives),
            "model": {
                "path": begun,
                "folder": str(inputs.base),
                "hash": content_hash(inputs.base),
            },
            "merged_adapters": [asdict(below) for below in find_stack(recipe.model.merged_adapters)],
            "data": {"hash": inputs.train.key, **asdict(inputs.train.report)},
            "ranks": mesh.world,
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "identity": identity(recipe, inputs),
            AT_DEFAULT: at_default(recipe),
            **describe_machine(),
        }
    )


def resume(loop: Loop, recipe: Recipe, inputs: Inputs, around: Context) -> None:
    """Continue from the newest valid checkpoint, if there is one; damaged newer ones are reported."""
    if around.mesh.is_first:
        loop.parts.store.clean()
        sweep_stages(around.run.path)
    around.mesh.barrier()
    checkpoint = loop.parts.store.newest()
    if checkpoint is None:
        return
    for skipped in checkpoint.skipped:
        around.warn(skipped)
    if checkpoint.skipped and around.mesh.is_first:
        told = f"going on from step {checkpoint.step}"
        around.display.message(told)
        around.tracker.text(told)
    for other in (other_versions(checkpoint), other_ranks(checkpoint, around.mesh.world)):
        if other is not None:
            around.warn(other)
    loop.resume(checkpoint, ignore=(DATA_HASH,) if around.accept_data_change else ())
    mend(loop.parts.streams, build_source(recipe, inputs, around.mesh), loop.position.step, around.mesh)
    around.tracker.heal(loop.position.step + 1)
    if around.mesh.is_first:
        told_before(loop, around.run)


def told_before(loop: Loop, run: RunDir) -> None:
    """What an earlier attempt told of the checkpoint's own step, after it was saved, is not told twice."""
    step = loop.position.step
    if any(name.startswith("eval/") for row in read_metrics(run.metrics_file) if row["step"] == step for name in row):
        loop.told = step
    if any(row.get("step") == step and "completion" in row for row in read_lines(run.completions_file)):
        loop.position.sampled = step


def finish(loop: Loop, run: RunDir, recipe: Recipe, inputs: Inputs, mesh: Mesh) -> Path | None:
    """Write the final weights: the best ones when early stopping was asked for, else the last ones; where they are.

    Products in 8 bits end here: what is saved, centred and measured has the exact weights.
    """
    best = loop.parts.store.best() if loop.parts.settings.early_stopping is not None else None
    if best is not None and best.step != loop.position.step:
        weights = best.tensors("weights")
        for name, parameter in loop.parts.trained.items():
            parameter.data.copy_(weights[name])
        loop.parts.tracker.event("best_weights", {"step": best.step})
    else:
        loop.parts.optimizer.settle()
    exact_products(loop.parts.model)
    folder = None
    if mesh.is_first:
        if recipe.model.base_products != "exact":
            exact_again(loop.parts.model, load_base(inputs.base, recipe.model, mesh.device(), inputs.task.outputs))
        stack, new = find_stack(recipe.model.merged_adapters), recipe.model.added
        folder = save_weights(loop.parts.model, run.path, inputs.base, inputs.task, stack, new)
        if inputs.task.reads == "values" and meaning_of(inputs.task).is_reward:
            examples = [inputs.train[index] for index in range(0, len(inputs.train), -(-len(inputs.train) // CENTRING))]
            centre(loop.parts.model, examples, folder, "the training data")
    mesh.barrier()
    return folder


def summarise(run: RunDir, position: Position, mesh: Mesh) -> RunResult:
    return RunResult(
        run=str(run.path),
        steps=position.step,
        tokens=position.tokens,
        scored_tokens=round(position.scored),
        saved_tokens=position.saved,
        seconds=position.seconds,
        tokens_per_second=position.tokens / position.seconds if position.seconds else 0.0,
        peak_memory_bytes=int(mesh.largest(peak_memory_bytes(mesh.device()))),
        first_loss=position.first_loss,
        last_loss=position.last_loss,
    )
