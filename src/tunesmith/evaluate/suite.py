"""A model at its tasks: every exercise asked, and a result for each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import DataError, Diagnostic, Fix, Where
from tunesmith.evaluate.asking import Asking
from tunesmith.evaluate.choices import best, likelihoods_of
from tunesmith.evaluate.exercise import Exercise
from tunesmith.evaluate.scorers import SHARES, CodeScorer, code_not_allowed
from tunesmith.evaluate.tasks import TaskConfig
from tunesmith.rollout.config import Held
from tunesmith.rollout.generator import Sampling, context_length, generate
from tunesmith.rollout.sandbox import check_sandbox

LONGEST = 2048  # tokens of one piece of a text
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure of a task. `lower`: less is better. `binary`: every result is 0 or 1."""

    name: str
    binary: bool = False
    lower: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What one model made of one exercise.

    `scores` are by measure; those of a loss are means over `weights`, tokens or bytes, so that longer texts count more.
    """

    task: str
    name: str
    category: str
    prompt: str
    answer: str
    reference: str
    scores: dict[str, float]
    weights: dict[str, float] = field(default_factory=dict)
    finished: bool = True
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class TaskRun:
    """The results of one model at one task; the first measure is the main one."""

    task: TaskConfig
    measures: tuple[Measure, ...]
    results: list[Result]
    left_out: Counter[str]
    warnings: list[Diagnostic] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Working:
    """A model, how many prompts it decodes together and from what, who hears how far it is, and whether answers run."""

    model: nn.Module
    tokenizer: Tokenizer
    batch_size: int = 32
    on_progress: Progress | None = None
    run_code: bool = False
    held: Held = "packed"

    def heard(self, task: str) -> Callable[[int, int], None] | None:
        tell = self.on_progress
        return None if tell is None else lambda done, total: tell(task, done, total)


def run_task(working: Working, task: TaskConfig, exercises: Sequence[Exercise]) -> TaskRun:
    """Every exercise that fits the model's context; DataError E461 when none does, UsageError E459 without `run_code`.

    The results of a pairwise task have no scores yet: they come from `deciding`, when all models have answered.
    """
    check_code([task], allowed=working.run_code)
    asking = Asking.of(task, working.tokenizer)
    left_out: Counter[str] = Counter()
    measures, results = WORK[task.kind](working, asking, exercises, left_out)
    if not results:
        raise DataError(
            "E461",
            f"no exercise of the task {task.name} can be measured with this model",
            where=Where(str(working.tokenizer.folder)),
            evidence=[f"{count} exercises: {reason}" for reason, count in left_out.items()],
            fixes=["a model with a longer context", "shorter exercises, or fewer solved examples"],
        )
    return TaskRun(task, measures, results, left_out, warned(asking, left_out))


def check_code(tasks: Sequence[TaskConfig], *, allowed: bool) -> None:
    """UsageError E459 for a task that runs answers as programs when nobody allowed that."""
    runs = next((one for one in tasks if any(isinstance(scorer, CodeScorer) for scorer in one.scorers)), None)
    if runs is not None and not allowed:
        raise code_not_allowed(runs.name)


def warned(asking: Asking, left_out: Counter[str]) -> list[Diagnostic]:
    task, found = asking.task, []
    if task.chat == "auto" and task.kind in ("generation", "pairwise") and not asking.chat:
        message = f"{task.name}: the model has no chat template, so it is asked in plain text"
        fixes = "chat: never in the task asks every model in plain text"
        found.append(warning("W451", message, fixes))
    if any(isinstance(scorer, CodeScorer) for scorer in task.scorers) and not check_sandbox():
        message = f"{task.name}: programs run with limits, but this system does not keep them from network and files"
        found.append(warning("W455", message, "run it in a container or virtual machine that holds nothing of value"))
    for reason, count in left_out.items():
        message = f"{task.name}: {count} exercises are left out: {reason}"
        found.append(warning("W452", message, "compare models on a task that fits all of them"))
    return found


def warning(code: str, message: str, fix: str) -> Diagnostic:
    return Diagnostic(code, message, "warning", fixes=(Fix(fix),))


Found = tuple[tuple[Measure, ...], list[Result]]


def choose(working: Working, asking: Asking, exercises: Sequence[Exercise], left_out: Counter[str]) -> Found:
    """Which choice is likeliest, by its sum, per character and per token."""
    room = context_length(working.model)
    kept, examples = [], []
    for exercise in exercises:
        example = asking.example(exercise, exercise.choices)
        ends = (*example.cuts[1:], len(example))
        longest = max(end - start for start, end in zip(example.cuts, ends, strict=True))
        if example.cuts[0] + longest > room:
            left_out["longer than the context"] += 1
        else:
            kept.append(exercise)
            examples.append(example)
    names = {"none": "accuracy", "length": "accuracy_length", "tokens": "accuracy_tokens"}
    main = names[asking.task.normalise]
    measures = tuple(Measure(name, binary=True) for name in sorted(names.values(), key=lambda name: name != main))
    found = likelihoods_of(working.model, examples, working.heard(asking.task.name))
    results: list[Result] = []
    for exercise, likely in zip(kept, found, strict=True):
        sums = [one.logprob for one in likely]
        figures = {
            "accuracy": sums,
            "accuracy_length": [one / len(text) for one, text in zip(sums, exercise.choices, strict=True)],
            "accuracy_tokens": [one.logprob / max(1, one.tokens) for one in likely],
        }
        picked = {name: best(values) for name, values in figures.items()}
        scores = {measure.name: float(picked[measure.name] == exercise.right) for measure in measures}
        detail = {"choices": list(exercise.choices), "logprobs": sums, "tokens": [one.tokens for one in likely]}
        results.append(result(exercise, asking, exercise.choices[picked[main]], scores, detail))
    return measures, results


def weigh(working: Working, asking: Asking, exercises: Sequence[Exercise], left_out: Counter[str]) -> Found:
    """The loss of texts, or of answers to prompts: bits per byte, which tokenizers do not change, and per token."""
    room = context_length(working.model)
    kept: list[Exercise] = []
    parts = []
    for exercise in exercises:
        if exercise.prompt:
            examples = [asking.example(exercise, exercise.answers[:1])]
        else:
            examples = asking.text(exercise, min(room, LONGEST))
        if not examples or max(map(len, examples)) > room:
            left_out["longer than the context"] += 1
            continue
        kept.append(exercise)
        parts.append(examples)
    flat = [example for examples in parts for example in examples]
    likely = iter(likelihoods_of(working.model, flat, working.heard(asking.task.name)))
    results: list[Result] = []
    for exercise, examples in zip(kept, parts, strict=True):
        found = [one for _ in examples for one in next(likely)]
        nats, tokens = -sum(one.logprob for one in found), sum(one.tokens for one in found)
        size = len(exercise.reference.encode("utf-8", "surrogatepass"))
        scores = {"bits_per_byte": nats / math.log(2) / size, "loss": nats / tokens}
        weights = {"bits_per_byte": float(size), "loss": float(tokens)}
        results.append(result(exercise, asking, "", scores, {"tokens": tokens}, weights))
    return (Measure("bits_per_byte", lower=True), Measure("loss", lower=True)), results


def write(working: Working, asking: Asking, exercises: Sequence[Exercise], left_out: Counter[str]) -> Found:
    """The model's own greedy answers, scored."""
    task, room = asking.task, context_length(working.model)
    prompts = {at: asking.question(exercise) for at, exercise in enumerate(exercises)}
    fitting = [at for at, ids in prompts.items() if 0 < len(ids) < room]
    if len(fitting) < len(exercises):
        left_out["the question fills the context"] = len(exercises) - len(fitting)
    made = generate(
        working.model,
        working.tokenizer,
        [prompts[at] for at in fitting],
        Sampling(task.max_new_tokens),
        batch_size=working.batch_size,
        on_progress=working.heard(task.name),
        held=working.held,
    )
    measures = tuple(Measure(scorer.title, binary=scorer.title not in SHARES) for scorer in task.scorers)
    results: list[Result] = []
    for at, answer in zip(fitting, made, strict=True):
        exercise = exercises[at]
        text, stopped = answer.text, False
        if not asking.chat:
            text, stopped = cut(answer.text, task.stop)
        scores = {scorer.title: scorer.score(text, exercise) for scorer in task.scorers}
        one = result(exercise, asking, text, scores, {"tokens": len(answer.tokens)})
        results.append(one if answer.finished or stopped else unfinished(one))
    return measures or (Measure("wins"),), results


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text up to the first of the stops, and whether there was one; white space before it is no answer yet."""
    lead = len(text) - len(text.lstrip())
    places = [place for stop in stops if (place := text.find(stop, lead)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def result(
    exercise: Exercise,
    asking: Asking,
    answer: str,
    scores: dict[str, float],
    detail: dict[str, Any],
    weights: dict[str, float] | None = None,
) -> Result:
    return Result(
        asking.task.name,
        exercise.name,
        exercise.category,
        exercise.prompt,
        answer,
        exercise.reference,
        scores,
        weights or {},
        detail=detail,
    )


def unfinished(one: Result) -> Result:
    return replace(one, finished=False)


WORK: dict[str, Callable[[Working, Asking, Sequence[Exercise], Counter[str]], Found]] = {
    "choice": choose,
    "loss": weigh,
    "generation": write,
    "pairwise": write,
}
