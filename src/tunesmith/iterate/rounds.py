"""One round of an online run: its prompts, its folder, and the recipe by which it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data.config import SourceConfig
from tunesmith.data.tally import Tally
from tunesmith.errors import DataError, UsageError, Where
from tunesmith.evaluate.config import EvaluateConfig
from tunesmith.evaluate.outcomes import Choice, To
from tunesmith.export.huggingface import merge_run
from tunesmith.export.opening import ModelSource, find_weights
from tunesmith.models.config import ModelConfig, ReferenceConfig
from tunesmith.models.locate import locate
from tunesmith.recipe import Recipe
from tunesmith.recipe.online import OnlineConfig
from tunesmith.rollout.prompts import Prompt, read_prompts
from tunesmith.track.files import read_object
from tunesmith.track.run_dir import RunDir
from tunesmith.types import Kind

TARGETS: dict[Kind, To] = {"pair": "pairs", "ranking": "rankings", "feedback": "feedback", "sequence": "sft"}


@dataclass(frozen=True, slots=True)
class Round:
    """Round `number` of the run in `parent`, counted from 0; its own directory is a run too."""

    number: int
    parent: RunDir

    @property
    def run(self) -> RunDir:
        return RunDir(self.parent.path / "rounds" / str(self.number))

    @property
    def sampled(self) -> Path:
        return self.run.path / "sampled.jsonl"

    @property
    def records(self) -> Path:
        return self.run.path / "records.jsonl"

    @property
    def votes(self) -> Path:
        return self.run.path / "votes.jsonl"

    @property
    def summary(self) -> Path:
        """Written last: with it the round is done."""
        return self.run.path / "round.json"

    @property
    def before(self) -> Round | None:
        return Round(self.number - 1, self.parent) if self.number else None

    def done(self) -> dict[str, Any] | None:
        return read_object(self.summary) if self.summary.exists() else None


def settings_of(recipe: Recipe) -> OnlineConfig:
    assert recipe.online is not None, "the recipe has rounds"
    return recipe.online


def target_of(recipe: Recipe) -> To:
    """What the objective learns from."""
    to = TARGETS.get(recipe.objective.kind) if recipe.objective.reads == "logprobs" else None
    if to is None:
        raise UsageError(
            "E271",
            f"{recipe.objective.title} does not learn from a model's own answers",
            where=Where(field="objective.name"),
            fixes=["choose an objective on pairs, feedback, rankings or answers, such as dpo, kto or sft"],
        )
    return to


def choice_of(recipe: Recipe) -> Choice:
    label = settings_of(recipe).label
    return Choice(target_of(recipe), label.min_margin, label.threshold, label.unfinished)


def all_prompts(recipe: Recipe) -> list[Prompt]:
    """The prompts of `data.train`; UsageError E025 without sources, DataError E262 without prompts."""
    if not recipe.data.train:
        message = "there are no prompts to answer"
        raise UsageError("E025", message, where=Where(field="data.train"), fixes=["data.train=FILE"])
    texts, tally = settings_of(recipe).sampling.texts, Tally(recipe.data.on_bad)
    found = [
        prompt for source in recipe.data.train for prompt in read_prompts(source, tally, recipe.data.limit, texts=texts)
    ]
    if not found:
        raise DataError("E262", "there is no prompt in the data", where=Where(recipe.data.train[0].path))
    return found


def prompts_of(recipe: Recipe, prompts: Sequence[Prompt], number: int) -> list[Prompt]:
    """The prompts of a round: the next ones in a shuffled order that begins again when it is used up."""
    count = settings_of(recipe).prompts
    if count is None or count >= len(prompts):
        return list(prompts)
    order = np.random.default_rng(recipe.train.seed).permutation(len(prompts))
    return [prompts[order[at % len(prompts)]] for at in range(number * count, (number + 1) * count)]


def seed_of(recipe: Recipe, number: int) -> int:
    """Every round draws from generators of its own."""
    return int(np.random.SeedSequence([recipe.train.seed, number]).generate_state(1)[0])


def start_source(recipe: Recipe) -> ModelSource:
    """The model before the first round."""
    model = recipe.model
    adapter = None if model.adapter_path is None else locate(model.adapter_path)
    return ModelSource(locate(model.path, model.revision), model, adapter=adapter)


def policy_source(recipe: Recipe, this: Round) -> ModelSource:
    """The model as the round finds it."""
    return start_source(recipe) if this.before is None else find_weights(this.before.run, "final")


def round_recipe(recipe: Recipe, this: Round) -> Recipe:
    """How the round trains: on its own records, from the weights of the round before."""
    online = settings_of(recipe)
    last = this.number == online.rounds - 1
    board = tuple(name for name in recipe.run.report_to if name == "tensorboard")
    return recipe.model_copy(
        update={
            "online": None,
            "model": round_model(recipe, this),
            "data": recipe.data.model_copy(update={"train": (SourceConfig(path=str(this.records)),), "limit": None}),
            "evaluate": recipe.evaluate if last else EvaluateConfig(),
            "run": recipe.run.model_copy(update={"name": None, "report_to": board or ("none",)}),
        }
    )


def round_model(recipe: Recipe, this: Round) -> ModelConfig:
    model, before = recipe.model, this.before
    if before is None:
        return model
    changes: dict[str, Any]
    if model.adapter.kept == "adapter":
        changes = {"adapter_path": str(before.run.path / "adapter")}
    else:
        changes = {"path": str(before.run.path / "model"), "revision": None}
    if recipe.has_reference:
        changes["reference"] = round_reference(recipe, this)
    return model.model_copy(update=changes)


def round_reference(recipe: Recipe, this: Round) -> ReferenceConfig:
    """The start of this round, or what is exactly the start of the first one.

    With a new adapter that is the base model below it; an adapter that the run began with is merged once into a model.
    A reference that the recipe names outright stays what it is.
    """
    settings, model = recipe.model.reference, recipe.model
    if settings.source in ("path", "adapter_off") or settings_of(recipe).reference == "previous":
        return settings
    if model.adapter.kept == "model":
        return settings.model_copy(update={"source": "path", "path": str(locate(model.path, model.revision))})
    if model.adapter_path is None:
        return settings.model_copy(update={"source": "adapter_off"})
    return settings.model_copy(update={"source": "path", "path": str(this.parent.path / "rounds" / "start")})


def prepare_reference(recipe: Recipe, this: Round) -> None:
    """Merge the adapter that the run began with, when a later round compares with it."""
    reference = round_model(recipe, this).reference
    start = this.parent.path / "rounds" / "start"
    adapter = recipe.model.adapter_path
    if adapter is not None and reference.path == str(start) and not start.exists():
        merge_run(locate(adapter), start)
