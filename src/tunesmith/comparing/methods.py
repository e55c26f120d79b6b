"""Methods under one budget: planned, each trained in a process of its own, and measured on the task and elsewhere."""

from __future__ import annotations

import gc
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from tunesmith.comparing.entries import LR, Entry
from tunesmith.comparing.rows import BASE, Row
from tunesmith.data.config import SourceConfig
from tunesmith.data.hub import PREFIX
from tunesmith.data.sources import find_files
from tunesmith.data.tokenizer import Tokenizer, load_tokenizer
from tunesmith.errors import Fix, TunesmithError, UsageError, Where
from tunesmith.evaluate.config import EvaluateConfig
from tunesmith.evaluate.harness import Evaluation, evaluate
from tunesmith.evaluate.metrics import LOSS_METRICS
from tunesmith.export.opening import open_model
from tunesmith.plan import make_plan
from tunesmith.recipe import Recipe, load_recipe
from tunesmith.track.progress import Progress

# measured afterwards, all methods alike; speed by the profile
TRAINED = ("evaluate.data=[]", "evaluate.forgetting=0", "train.profile=true")


@dataclass(frozen=True, slots=True)
class Budget:
    """What all methods share: the recipe and its settings, data for the loss elsewhere, and where results go."""

    recipe: str
    settings: tuple[str, ...]
    folder: Path
    general: tuple[str, ...] = ()
    general_limit: int = 200
    rate_scale: float = 1.0

    def words(self, entry: Entry) -> tuple[str, ...]:
        """The settings of a method's run; its usual rate where it names none."""
        words = (*self.settings, *entry.settings)
        if entry.sets_rate:
            return words
        usual = load_recipe(self.recipe, words).recipe.model.adapter.usual_rate[1]
        return (*words, f"{LR}={usual * self.rate_scale:g}")


def compare(budget: Budget, entries: Sequence[Entry], display: Progress) -> list[Row]:
    """The base model, then every method; a method that was trained and measured before is not trained again.

    UsageError E402 when the recipe names nothing to measure the task by, E397 when it describes a new model.
    """
    recipe = load_recipe(budget.recipe, budget.settings).recipe
    if recipe.model.fresh is not None:
        raise UsageError(
            "E397",
            "methods are compared by what they make of a model, and a new model is nothing yet",
            where=Where(field="model.fresh"),
            fixes=[Fix("load a model: model.fresh=", {"model.fresh": None})],
        )
    if not recipe.evaluate.data:
        raise UsageError(
            "E402",
            "there is nothing to measure the methods by",
            where=Where(field="evaluate.data"),
            fixes=[Fix("records that are not trained: evaluate.data=FILE")],
        )
    budget.folder.mkdir(parents=True, exist_ok=True)
    base = kept(budget, Entry(BASE, ()), lambda: measure_base(budget, recipe, display))
    rows = [base]
    for number, entry in enumerate(entries, 1):
        display.phase(f"{entry.name}: {number} of {len(entries)}")
        row = kept(budget, entry, lambda entry=entry: try_method(budget, entry, display))
        rows.append(against(row, base))
    return rows


def kept(budget: Budget, entry: Entry, work: Callable[[], Row]) -> Row:
    """The row of an earlier call with the same settings and data, or a new one; what went wrong is tried again."""
    path = budget.folder / f"{entry.slug}.json"
    asked = [budget.recipe, *budget.settings, *entry.settings, *budget.general, budget.general_limit, budget.rate_scale]
    asked += [told_of(budget)]
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["asked"] == asked:
            return Row.of_json(found["row"])
    row = work()
    if row.problem is None:
        path.write_text(json.dumps({"asked": asked, "row": row.to_json()}, indent=1) + "\n", encoding="utf-8")
    return row


def told_of(budget: Budget) -> str:
    """A hash of all that the recipe says, and of size and age of the files that it reads."""
    recipe = load_recipe(budget.recipe, budget.settings).recipe
    named = [source.path for sources in recipe.data.sets().values() for source in sources]
    named += [*(source.path for source in recipe.evaluate.data), *budget.general]
    files = [path for name in named if not name.startswith(PREFIX) for path in find_files(name)]
    ages = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join([recipe.model_dump_json(), *ages]).encode()).hexdigest()


def against(row: Row, base: Row) -> Row:
    if row.general is None or base.general is None:
        return row
    return replace(row, forgotten=row.general - base.general)


def measure_base(budget: Budget, recipe: Recipe, display: Progress) -> Row:
    opened = open_model(recipe.model.path, dtype=plain_type(recipe))
    return measured(Row(BASE), opened.model, load_tokenizer(opened.source.base), recipe, budget, display)


def plain_type(recipe: Recipe) -> Any:
    return recipe.model.dtype if recipe.model.dtype in ("float32", "bfloat16") else "auto"


def try_method(budget: Budget, entry: Entry, display: Progress) -> Row:
    """Plan, train and measure one method; what keeps it from being trained is its row's problem."""
    try:
        words = budget.words(entry)
        recipe = load_recipe(budget.recipe, words).recipe
        plan = make_plan(recipe)
        plan.check()
    except TunesmithError as error:
        return Row(entry.name, entry.settings, problem=str(error.diagnostic.message))
    sizes = plan.to_json()
    parameters = sizes["parameters"]
    row = Row(
        entry.name,
        entry.settings,
        trainable=parameters["trainable"],
        share=parameters["trainable"] / parameters["total"],
        rate=recipe.train.optimizer.lr,
        planned_bytes=sizes["memory"]["peak"],
    )
    done = train_apart(budget, entry, words)
    if "error" in done:
        return replace(row, problem=done["error"]["message"])
    run = Path(done["run"])
    row = replace(
        row,
        peak_bytes=done["peak_memory_bytes"],
        tokens_per_second=done["tokens_per_second"],
        tokens_per_cpu_second=by_processor(run),
        seconds=done["seconds"],
        steps=done["steps"],
        file_bytes=size_of(run),
    )
    opened = open_model(str(run))
    row = measured(row, opened.model, opened.tokenizer, recipe, budget, display)
    del opened
    gc.collect()
    return row


def train_apart(budget: Budget, entry: Entry, words: Sequence[str]) -> dict[str, Any]:
    """What `tunesmith train --json` says of this method; a process of its own has a peak of its own."""
    place = [f"run.folder={budget.folder / 'runs'}", f"run.name={entry.slug}"]
    command = [sys.executable, "-P", "-m", "tunesmith", "train", budget.recipe, *words, *TRAINED, *place]
    done = subprocess.run([*command, "--resume", "auto", "--yes", "--json"], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if lines:
        return json.loads(lines[-1])
    told = done.stderr.strip().splitlines()
    return {"error": {"message": f"exit code {done.returncode}: {told[-1] if told else 'nothing was said'}"}}


def by_processor(run: Path) -> float | None:
    """Tokens that a second of the processor trains, from the run's profile; None for a run of very few steps."""
    path = run / "profile.json"
    if not path.exists():
        return None
    profile = json.loads(path.read_text(encoding="utf-8"))
    return profile["tokens"] / profile["cpu_seconds"] if profile["cpu_seconds"] else None


def size_of(run: Path) -> int:
    """Bytes of what the run leaves to use: its adapter, or its model."""
    folders = (run / "adapter", run / "model")
    return sum(path.stat().st_size for folder in folders if folder.is_dir() for path in folder.rglob("*.safetensors"))


def measured(
    row: Row, model: nn.Module, tokenizer: Tokenizer, recipe: Recipe, budget: Budget, display: Progress
) -> Row:
    """The row with its scores: the first metric of answers on the task, its loss, and the loss elsewhere."""

    def told(task: str, done: int, total: int) -> None:
        display.phase(f"{row.name}: answering {task}", done, total)

    task = evaluate(model, tokenizer, recipe.evaluate, recipe.data, on_progress=told)
    row = scored(row, task)
    if not budget.general:
        return row
    sources = tuple(SourceConfig(path=path) for path in budget.general)
    settings = EvaluateConfig(data=sources, metrics=("loss",), limit=budget.general_limit)
    losses = [found["loss"] for found in evaluate(model, tokenizer, settings, recipe.data).scores.values()]
    return replace(row, general=sum(loss.value for loss in losses) / len(losses))


def scored(row: Row, task: Evaluation) -> Row:
    found = next(iter(task.scores.values()))
    answers = [name for name in found if name not in LOSS_METRICS]
    loss = found["loss"].value if "loss" in found else None
    if not answers:
        return replace(row, task_loss=loss)
    score = found[answers[0]]
    return replace(row, metric=answers[0], score=score.value, low=score.low, high=score.high, task_loss=loss)
