"""The quickstart: a real chat model learns to turn messy notes into strict JSON, measured before and after."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tunesmith.data.messy_text import write_dataset
from tunesmith.data.tokenizer import load_tokenizer
from tunesmith.distributed.mesh import Mesh
from tunesmith.evaluate.harness import Evaluation, Row, evaluate
from tunesmith.export.huggingface import merge_run
from tunesmith.models.config import ModelConfig
from tunesmith.models.load import load_base
from tunesmith.models.starter import ensure_starter
from tunesmith.paths import home
from tunesmith.plan import Plan, make_plan, record_actual
from tunesmith.recipe import Recipe, load_recipe
from tunesmith.run import execute
from tunesmith.track.progress import Progress
from tunesmith.track.run_dir import RunDir

TASK = "test"
RECORDS = {"train": 1250, "test": 150}


@dataclass(frozen=True, slots=True)
class Quickstart:
    """What came of it; `rows` are (before, after) for every held-out note."""

    before: Evaluation
    after: Evaluation
    run: Path
    merged: Path
    seconds: float

    @property
    def rows(self) -> list[tuple[Row, Row]]:
        return list(zip(self.before.rows, self.after.rows, strict=True))

    def to_json(self) -> dict[str, Any]:
        return {
            "before": self.before.to_json()[TASK],
            "after": self.after.to_json()[TASK],
            "run": str(self.run),
            "merged": str(self.merged),
            "seconds": self.seconds,
        }


def quickstart(progress: Progress, overrides: list[str], show_plan: Callable[[Plan], None]) -> Quickstart:
    """Fetch the starter model, generate the data, measure, train LoRA, measure again, merge."""
    started = time.monotonic()
    base = ensure_starter(
        lambda text, share: progress.phase(f"starter model, {text}, percent", round(share * 100), 100)
    )
    recipe = quickstart_recipe(overrides)
    plan = make_plan(recipe)
    show_plan(plan)
    before = measure(load_base(base, ModelConfig()), base, recipe, progress, "answers before")
    run = RunDir.create(Path(recipe.run.folder), recipe.run.name, slug="quickstart")
    result = execute(unmeasured(recipe), run, Mesh(), progress, plan=plan.to_json())
    record_actual(plan, result.to_json())
    progress.phase("merging the adapter and checking its logits")
    merged = run.path / "merged"
    merge_run(run.path, merged)
    after = measure(load_base(merged, ModelConfig()), base, recipe, progress, "answers after")
    return Quickstart(before, after, run.path, merged, time.monotonic() - started)


def quickstart_recipe(overrides: list[str]) -> Recipe:
    """The shipped recipe on freshly generated data; frames of the test set never occur in training."""
    train, test = write_dataset(home() / "quickstart", train=RECORDS["train"], test=RECORDS["test"])
    files = [f"data.train={train}", f"evaluate.data={test}"]
    return load_recipe("quickstart", [*files, *overrides]).recipe


def unmeasured(recipe: Recipe) -> Recipe:
    """The recipe without its evaluation, which the quickstart does itself, on the merged model."""
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"data": ()})})


def measure(model: nn.Module, base: Path, recipe: Recipe, progress: Progress, label: str) -> Evaluation:
    def told(_: str, done: int, total: int) -> None:
        progress.phase(label, done, total)

    return evaluate(model, load_tokenizer(base), recipe.evaluate, recipe.data, on_progress=told)
