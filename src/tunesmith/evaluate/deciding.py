"""Tasks whose answers are compared two at a time: each model's beside the first one's, by whoever decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tunesmith.errors import UsageError, Where
from tunesmith.evaluate.labellers import Progress
from tunesmith.evaluate.labelling import check_choice, open_labeller
from tunesmith.evaluate.suite import Result, TaskRun
from tunesmith.evaluate.tasks import TaskConfig
from tunesmith.evaluate.win_rate import win_rate
from tunesmith.rollout.generator import Generated
from tunesmith.rollout.prompts import Prompt
from tunesmith.types import Message

WINS = "wins"


def check_pairwise(tasks: Sequence[TaskConfig], models: Sequence[str]) -> None:
    """UsageError E458 for one model alone, E270 where nobody decides; before anything is loaded."""
    for task in tasks:
        if task.kind != "pairwise":
            continue
        if len(models) < 2:
            message = f"the task {task.name} compares the answers of two models, and there is one"
            raise UsageError(
                "E458", message, where=Where("command line"), fixes=["tunesmith eval BASE MODEL --suite ..."]
            )
        check_choice(task.decider, "decider.")


def decide(runs: Mapping[str, TaskRun], votes: Path, on_progress: Progress | None = None) -> dict[str, TaskRun]:
    """The runs of one task with scores: how often a model's answer beats the first model's, whose own score is 1/2.

    A tie is 1/2; what nobody has compared is left out. A judge's verdicts are kept in `votes`.
    """
    first, *others = runs
    task = runs[first].task
    base = {one.name: one for one in runs[first].results}
    decided = {first: [replace(one, scores={WINS: 0.5}) for one in base.values()]}
    with open_labeller(task.decider, votes, "decider.") as labeller:
        for model in others:
            shared = [one for one in runs[model].results if one.name in base]
            prompts = [prompt_of(task, one, at) for at, one in enumerate(shared)]
            found = win_rate(
                prompts,
                list(map(generated, shared)),
                [generated(base[one.name]) for one in shared],
                labeller,
                on_progress,
            )
            hits = {duel.record: duel.hit for duel in found.duels}
            places = [f"{prompt.file}:{prompt.line}" for prompt in prompts]
            decided[model] = [
                replace(one, scores={WINS: hits[place]})
                for one, place in zip(shared, places, strict=True)
                if place in hits
            ]
        doubts = labeller.warnings()
    return {
        model: replace(run, results=decided[model], warnings=[*run.warnings, *(doubts if model != first else ())])
        for model, run in runs.items()
    }


def prompt_of(task: TaskConfig, one: Result, at: int) -> Prompt:
    """What both were asked; its place names the exercise."""
    if task.chat == "never":
        return Prompt(one.prompt, task.name, at + 1)
    system = [] if task.system is None else [Message("system", task.system)]
    return Prompt((*system, Message("user", one.prompt)), task.name, at + 1, reference=one.reference or None)


def generated(one: Result) -> Generated:
    return Generated(one.answer, (), one.finished)
