"""What a run starts from: the model's folder, its tokenizer, and the prepared data."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.entries import read_entries
from tunesmith.data.prepared import Prepared, prepare
from tunesmith.data.probes import check_template
from tunesmith.data.tally import Tally
from tunesmith.data.tokenizer import Tokenizer, load_tokenizer
from tunesmith.distributed.mesh import Mesh
from tunesmith.evaluate.harness import kind_held
from tunesmith.models.fresh import locate_start
from tunesmith.models.inventory import take_inventory
from tunesmith.recipe import Recipe
from tunesmith.recipe.task import resolve_task
from tunesmith.track.progress import Progress
from tunesmith.types import Task


@dataclass(frozen=True, slots=True)
class Inputs:
    """The base folder, its tokenizer, what records are to the objective, and prepared examples."""

    base: Path
    tokenizer: Tokenizer
    task: Task
    train: Prepared
    eval: Prepared | None
    general: Prepared | None = None  # held out, of what must not be forgotten


def gather_inputs(recipe: Recipe, mesh: Mesh, display: Progress) -> Inputs:
    """Fetch the model folder and prepare the data; the first rank works, the others read what it wrote."""

    def told(done: int) -> None:
        display.phase("preparing the data", done)

    def gather() -> Inputs:
        display.phase("fetching the model")
        base = locate_start(recipe.model, recipe.train.seed)
        tokenizer = load_tokenizer(base, recipe.model.new_tokens)
        display.phase("preparing the data")
        task = resolve_task(recipe)
        train = prepare(recipe.data.trained, recipe.data, tokenizer, told, task)
        held_out = prepare(recipe.data.eval, recipe.data, tokenizer, None, task) if recipe.data.eval else None
        kept = recipe.data.general.eval
        general = prepare(kept, recipe.data, tokenizer, None, Task()) if kept else None
        for source in recipe.evaluate.data:  # faults are told before the training, not after it
            kind = task.kind if task.reads == "values" else kind_held(source)
            deque(read_entries(source, Tally(recipe.data.on_bad), recipe.evaluate.limit, kind), maxlen=0)
        return Inputs(base, tokenizer, task, train, held_out, general)

    return mesh.first_then_others(gather)


def input_warnings(inputs: Inputs) -> list[str]:
    """What the user should know of data and template before the model is loaded."""
    found = [str(warning) for warning in check_template(inputs.tokenizer)] if inputs.tokenizer.has_template else []
    sets = [one for one in (inputs.train, inputs.eval, inputs.general) if one is not None]
    return [*found, *(warning for one in sets for warning in one.report.warnings)]


def sized(recipe: Recipe, inputs: Inputs, mesh: Mesh) -> Recipe:
    """With the microbatches that fit the model, where none are named."""
    return recipe.sized(take_inventory(inputs.base).body, mesh.device().type)
