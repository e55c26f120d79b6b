"""The three phases of a round, each complete or not begun: answers, records, weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.distributed.mesh import Mesh
from tunesmith.errors import Diagnostic, Fix
from tunesmith.evaluate.labelling import open_labeller
from tunesmith.evaluate.outcomes import label, write_records
from tunesmith.export.identity import weights_identity
from tunesmith.export.opening import open_source
from tunesmith.faults import fault
from tunesmith.iterate.rounds import (
    Round,
    choice_of,
    policy_source,
    prepare_reference,
    round_recipe,
    seed_of,
    settings_of,
)
from tunesmith.plan import make_plan
from tunesmith.recipe import Recipe
from tunesmith.rollout.answers import AnswerFile, read_answers
from tunesmith.rollout.prompts import Prompt
from tunesmith.rollout.sampling import Drawing, draw_answers, drawing_identity
from tunesmith.run import execute
from tunesmith.track.files import read_object, replace_text, to_json
from tunesmith.track.outcome import outcome
from tunesmith.track.progress import Progress

FEW_FINISHED = 0.2  # share of finished answers below which a round is hardly worth its time


@dataclass(frozen=True, slots=True)
class Around:
    """What all phases use; `check_stop` raises when a signal asked to stop, `tell` records a phase."""

    recipe: Recipe
    mesh: Mesh
    display: Progress
    check_stop: Callable[[], None]
    tell: Callable[[str, dict[str, Any]], None]


def sample(this: Round, prompts: Sequence[Prompt], around: Around) -> dict[str, Any]:
    """Answers of the present model to the round's prompts; what an earlier attempt drew is kept."""
    recipe, number = around.recipe, this.number
    settings, source, seed = settings_of(recipe).sampling, policy_source(recipe, this), seed_of(recipe, number)
    title = f"round {number + 1}: answers"
    this.run.path.mkdir(parents=True, exist_ok=True)

    def load() -> tuple[nn.Module, Tokenizer]:
        around.display.phase(f"round {number + 1}: loading {source.told}")
        opened = open_source(source)
        return opened.model, opened.tokenizer

    def told(done: int, total: int) -> None:
        around.display.phase(title, done, total)

    identity = drawing_identity(settings, seed, weights_identity(source))
    drawing = Drawing(settings, seed, told, around.check_stop)
    with AnswerFile(this.sampled, identity) as file:
        made = draw_answers(load, prompts, file, drawing).to_json()
    if made["completions"] and made["finished"] < FEW_FINISHED:
        warning = few_finished(made["finished"], settings.max_new_tokens)
        around.display.message(str(warning))
        around.tell("warning", warning.to_json())
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    fault("online.after_sampling", number, this.sampled)
    return made


def few_finished(share: float, limit: int) -> Diagnostic:
    """W248: nearly all answers were cut, and what is cut is not judged."""
    name = "online.sampling.max_new_tokens"
    fix = Fix(f"{name}={2 * limit}", {name: 2 * limit}, effect="sampling takes longer")
    message = f"only {share:.0%} of the answers came to their end within {limit} tokens; cut ones are not judged"
    return Diagnostic("W248", message, "warning", fixes=(fix,))


def mark(this: Round, around: Around) -> dict[str, Any]:
    """Records of the answers and their marks; DataError E264 when all are ties or unusable."""
    told_file = this.run.path / "labels.json"
    if this.records.exists() and told_file.exists():
        return read_object(told_file)
    recipe = around.recipe
    around.display.phase(f"round {this.number + 1}: marks")
    rows = read_answers(str(this.sampled))

    def told(done: int, total: int) -> None:
        around.display.phase(f"round {this.number + 1}: marks", done, total)
        around.check_stop()

    with open_labeller(settings_of(recipe).label, this.votes) as labeller:
        found = label(rows, labeller, choice_of(recipe), told)
        for warning in labeller.warnings():
            around.display.message(str(warning))
            around.tell("warning", warning.to_json())
    replace_text(told_file, to_json(found.to_json(), indent=1) + "\n")
    write_records(found, this.records, str(this.sampled))
    fault("online.after_labelling", this.number, this.records)
    return found.to_json()


def train(this: Round, around: Around) -> dict[str, Any]:
    """One ordinary run on the round's records, continued when it was begun; with its last evaluation loss."""
    around.mesh.first_then_others(lambda: around.mesh.is_first and prepare_reference(around.recipe, this))
    recipe = round_recipe(around.recipe, this)
    plan = around.mesh.first_then_others(lambda: make_plan(recipe, ranks=around.mesh.world))
    result = execute(recipe, this.run, around.mesh, around.display, plan=plan.to_json())
    return {**result.to_json(), "eval_loss": outcome(this.run).eval_loss}


def timed(action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a phase tells, with its seconds."""
    started = time.monotonic()
    return {**action(), "seconds": round(time.monotonic() - started, 3)}
