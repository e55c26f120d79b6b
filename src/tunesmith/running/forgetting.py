"""The report on what a run learned and lost: its base and every state of its weights that is left, measured once."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith import __version__
from tunesmith.data.tokenizer import Tokenizer, load_tokenizer
from tunesmith.errors import (
    BadInput,
    CheckpointError,
    Diagnostic,
    Fix,
    NumericalError,
    TunesmithError,
    UsageError,
    Where,
)
from tunesmith.evaluate.changes import Sheet
from tunesmith.evaluate.forgetting import BASE, Report, Weights, report_on
from tunesmith.evaluate.suite import Measure
from tunesmith.export.opening import ModelSource, find_weights, open_source
from tunesmith.export.stages import Stages
from tunesmith.models.content import content_hash
from tunesmith.models.fresh import locate_start
from tunesmith.models.locate import FINAL
from tunesmith.recipe import Recipe, load_recipe
from tunesmith.running.forgetting_advice import advice_on
from tunesmith.running.forgetting_tasks import Measured, Wish, hashed, tasks_of
from tunesmith.running.references import code_hash, start_key
from tunesmith.track.files import disk_error, replace_text, to_json
from tunesmith.track.outcome import FINISH
from tunesmith.track.progress import Progress
from tunesmith.track.reader import read_lines
from tunesmith.track.run_dir import RunDir
from tunesmith.track.status import ACTIVE, observed
from tunesmith.train.checkpoint import CheckpointStore
from tunesmith.train.manifest import Broken, read_manifest


@dataclass(frozen=True, slots=True)
class State:
    """Weights of a run that can be measured; `key` says what they are, whatever they are called."""

    name: str
    step: int | None
    final: bool
    key: str


def forgetting(run: RunDir, wish: Wish, display: Progress) -> Report:
    """Measure what is not known yet and report; nothing is loaded when all of it is.

    UsageError E473 while the run trains, E477 where a head of values is trained; CheckpointError E474 for a run
    without weights, BadInput E475 when its base is gone or another one; and what `tasks_of` raises.
    """
    started = time.monotonic()
    recipe = load_recipe(run.config_file, (), {}).recipe
    check(run, recipe)
    base = base_of(run, recipe, wish.base)
    states, warnings = states_of(run, start_key(recipe, base))
    tokenizer = load_tokenizer(base, recipe.model.new_tokens)
    tasks, doubts = tasks_of(recipe, tokenizer, wish)
    bench = Bench(run, ModelSource(base, recipe.model, run=run), tokenizer, tasks, display)
    measured = [found for state in states if (found := bench.measure(state)) is not None]
    if len(measured) < 2:
        raise no_weights(run)
    report = report_on(run.id, measured, wish.weight, [*warnings, *bench.warnings, *doubts])
    cut = any(task.cut for task in tasks)
    report = replace(report, advice=advice_on(report, recipe, run, wish, cut=cut))
    return replace(report, work=bench.work | {"seconds": time.monotonic() - started})


def check(run: RunDir, recipe: Recipe) -> None:
    if run.status_file.exists() and observed(run.read_status())[0] in ACTIVE:
        raise UsageError(
            "E473",
            f"the run {run.id} is still training: its checkpoints come and go",
            where=Where(str(run.path)),
            fixes=[
                Fix("wait for its end", command=f"tunesmith runs tail {run.path} --follow"),
                Fix("or stop it, which saves", command=f"tunesmith runs stop {run.path}"),
            ],
        )
    if recipe.task.reads == "values":
        raise UsageError(
            "E477",
            f"the run {run.id} trains a head of values: it says no next tokens that could be forgotten",
            where=Where(str(run.path), field="objective.name"),
            fixes=[Fix("measure its values", command=f"tunesmith eval {run.path} --data FILE")],
        )


def base_of(run: RunDir, recipe: Recipe, given: Path | None) -> Path:
    """Where the model is that the run began with; BadInput E475 when it is gone, or holds other weights by now."""
    about: Any = run.read_run().get("model") or {}
    recorded = Path(str(about.get("folder", "")))
    named = [Fix("say where it is", command=f"tunesmith eval --forgetting {run.path} --base FOLDER")]
    if given is not None:
        folder = given.expanduser()
    elif about.get("folder") and (recorded / "config.json").is_file():
        folder = recorded
    else:
        try:
            folder = locate_start(recipe.model, recipe.train.seed)
        except TunesmithError as error:
            evidence = [error.diagnostic.message]
            where = Where(str(recorded), field="model.path")
            message = f"the model that {run.id} began with is gone"
            raise BadInput("E475", message, where=where, evidence=evidence, fixes=named) from error
    if not (folder / "config.json").is_file():
        raise BadInput("E475", f"{folder} holds no model", where=Where(str(folder), field="--base"), fixes=named)
    if about.get("hash") and content_hash(folder) != about["hash"]:
        message = f"the model in {folder} is not the one that {run.id} began with: its weights differ"
        raise BadInput("E475", message, where=Where(str(folder)), fixes=named)
    return folder


def states_of(run: RunDir, start: str) -> tuple[list[State], list[Diagnostic]]:
    """The base, every checkpoint in order, and the final weights where no checkpoint holds them."""
    store, warnings, ended = CheckpointStore(run.checkpoints), list[Diagnostic](), final_step(run)
    states = [State(BASE, None, False, start)]
    for step in sorted(store.steps()):
        folder = run.checkpoints / f"step-{step}"
        try:
            held = read_manifest(folder)["files"]["weights.safetensors"]["sha256"]
        except (Broken, KeyError) as error:
            warnings.append(skipped(folder, str(error)))
            continue
        name = f"step {step} (final)" if step == ended else f"step {step}"
        states.append(State(name, step, step == ended, f"{start} {held}"))
    folder = next((run.path / name for name in FINAL if (run.path / name).is_dir()), None)
    if folder is not None and not any(state.final for state in states):
        states.append(State("final", None, True, f"{start} {content_hash(folder)}"))
    if len(states) < 2:
        raise no_weights(run)
    return states, warnings


def skipped(folder: Path, why: str) -> Diagnostic:
    return Diagnostic("W110", f"checkpoint {folder.name} is skipped: {why}", "warning", Where(str(folder)))


def no_weights(run: RunDir) -> CheckpointError:
    return CheckpointError(
        "E474",
        f"the run {run.id} has no weights to measure: no checkpoint that can be used, and no final weights",
        where=Where(str(run.checkpoints)),
        fixes=[Fix("let it train on", command=f"tunesmith runs resume {run.path}")],
    )


def final_step(run: RunDir) -> int | None:
    """The step whose weights a finished run ended with: the best one's with early stopping, else the last."""
    ended: int | None = None
    best: int | None = None
    for row in read_lines(run.events_file):
        if row.get("event") == "best_weights":
            best = row.get("step")
        elif row.get("event") == FINISH:
            ended, best = row.get("steps") if best is None else best, None
    return ended


@dataclass(slots=True)
class Bench:
    """Where weights are measured: loaded when the first of them must be, and what was measured is kept."""

    run: RunDir
    source: ModelSource
    tokenizer: Tokenizer
    tasks: Sequence[Measured]
    display: Progress
    stages: Stages | None = None
    warnings: list[Diagnostic] = field(default_factory=list)
    work: dict[str, float] = field(default_factory=lambda: {"measured": 0, "known": 0, "loads": 0, "swaps": 0})

    @property
    def folder(self) -> Path:
        return self.run.path / "forgetting"

    def measure(self, state: State) -> Weights | None:
        """The results of a state; None for a checkpoint that is damaged or predicts no numbers, which is told."""
        places = {task.name: self.place(state, task) for task in self.tasks}
        known = {task.name: sheet for task in self.tasks if (sheet := read_sheet(places[task.name], task)) is not None}
        missing = [task for task in self.tasks if task.name not in known]
        self.work["known"] += len(known)
        if missing:
            try:
                with self.dressed(state) as model:
                    for task in missing:
                        known[task.name] = self.at_task(model, state, task)
            except (CheckpointError, NumericalError) as error:
                if state.step is None:
                    raise
                self.warnings.append(skipped(self.run.checkpoints / f"step-{state.step}", error.diagnostic.message))
                return None
            for task in missing:
                self.write(places[task.name], known[task.name])
            self.work["measured"] += len(missing)
        return Weights(state.name, state.step, state.final, tuple(known[task.name] for task in self.tasks))

    def at_task(self, model: nn.Module, state: State, task: Measured) -> Sheet:
        def told(name: str, done: int, total: int) -> None:
            self.display.phase(f"{state.name} at {name}", done, total)

        return task.measure(model, self.tokenizer, told)

    @contextmanager
    def dressed(self, state: State) -> Iterator[nn.Module]:
        """The model with the weights of a state: loaded once, but for final weights that no checkpoint holds."""
        if state.step is None and state.final:
            self.stages = None
            gc.collect()
            self.work["loads"] += 1
            adapter = self.run.path / "adapter"
            is_beside = adapter.is_dir()
            yield open_source(
                replace(self.source, adapter=adapter) if is_beside else find_weights(self.run, "final")
            ).model
            return
        if self.stages is None:
            self.display.phase("loading the model")
            started = time.monotonic()
            self.stages = Stages.of(self.source)
            self.work["loads"] += 1
            self.work["load_seconds"] = time.monotonic() - started
        if state.step is None:
            with self.stages.base() as model:
                yield model
            return
        checkpoint = CheckpointStore(self.run.checkpoints).at(state.step)
        started = time.monotonic()
        model = self.stages.step(checkpoint)
        self.work["swaps"] += 1
        self.work["swap_seconds"] = self.work.get("swap_seconds", 0.0) + time.monotonic() - started
        yield model

    def place(self, state: State, task: Measured) -> Path:
        """The file of the results, by all that decides them."""
        machine = [__version__, torch.__version__, torch.cuda.is_available(), code_hash()]
        settings = self.source.settings.model_dump(mode="json", exclude={"path", "revision", "reference"})
        name = hashed([state.key, task.key, task.side, settings, *machine])[:32]
        return self.folder / "results" / f"{name}.json"

    def write(self, path: Path, sheet: Sheet) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, path.parent) from error
        measure = {"name": sheet.measure.name, "binary": sheet.measure.binary, "lower": sheet.measure.lower}
        content = {"task": sheet.task, "measure": measure, "names": sheet.names}
        replace_text(path, to_json({**content, "values": sheet.values, "weights": sheet.weights}) + "\n", sync=False)


def read_sheet(path: Path, task: Measured) -> Sheet | None:
    """What an earlier call measured; None when it did not, or its file is damaged."""
    try:
        found = json.loads(path.read_text("utf-8"))
        names, values, weights = (tuple(found[key]) for key in ("names", "values", "weights"))
        sheet = Sheet(
            task.name,
            task.side,
            Measure(**found["measure"]),
            names,
            tuple(map(float, values)),
            tuple(map(float, weights)),
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return sheet if names and len(names) == len(values) == len(weights) else None
