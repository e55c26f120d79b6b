"""Tasks as data: a YAML page says what is asked, where the exercises come from, and how answers are scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from tunesmith.config import Config
from tunesmith.configuring.reader import Tree, read_file
from tunesmith.data.config import SourceConfig
from tunesmith.data.sources import read_source
from tunesmith.errors import DataError, UsageError, Where, nearest
from tunesmith.evaluate.exercise import Exercise, filled, lacks
from tunesmith.evaluate.label_config import LabelConfig
from tunesmith.evaluate.made import GENERATORS, make
from tunesmith.evaluate.scorers import SCORERS, Scorer, unknown_scorer

FOLDER = Path(__file__).parent / "suites"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

TaskKind = Literal["loss", "choice", "generation", "pairwise"]


class MadeConfig(Config):
    """Exercises that a generator makes, always the same ones for one seed."""

    generator: str = Field(description="Name of the generator.")
    count: Annotated[int, Field(ge=1, le=100_000)] = Field(default=50, description="How many it makes.")
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Another seed makes others.")


class TaskConfig(Config):
    """One task; exactly one of `made`, `data` and `exercises` says what its exercises are."""

    name: str = Field(pattern=r"^[\w.-]+$", description="Name of the task in reports.")
    kind: TaskKind = Field(description="What is measured.")
    about: str = Field(default="", description="One line for readers.")
    made: MadeConfig | None = Field(default=None, description="A generator that makes the exercises.")
    data: str | None = Field(default=None, description="File of exercises, beside the task's own file.")
    exercises: tuple[dict[str, Any], ...] = Field(default=(), description="Exercises written here.")
    examples: tuple[dict[str, Any], ...] = Field(default=(), description="Solved ones, shown before every question.")
    prompt: str = Field(default="{question}", description="What is asked; {field} is a field of the exercise.")
    system: str | None = Field(default=None, description="System message of a chat.")
    chat: Literal["auto", "always", "never"] = Field(
        default="auto", description="Ask as a chat; auto does where the model has a chat template."
    )
    answer: str = Field(default="answer", description="Field of the right answer, or of a list of right ones.")
    choices: str = Field(default="choices", description="Field of the choices.")
    category: str = Field(default="category", description="Field by which results are grouped.")
    text: str = Field(default="text", description="Field of the text, of kind loss.")
    before: str = Field(default=" ", description="Stands before an answer in plain text, not in a chat.")
    normalise: Literal["none", "length", "tokens"] = Field(
        default="none", description="What log-likelihoods of choices are divided by in the main figure."
    )
    scorers: tuple[Scorer, ...] = Field(default=(), description="Scorers; the first is the main figure.")
    stop: tuple[str, ...] = Field(default=(), description="Texts that end an answer to plain text.")
    max_new_tokens: Annotated[int, Field(ge=1, le=131_072)] = Field(default=256, description="Longest answer.")
    decider: LabelConfig = Field(default=LabelConfig(), description="Who says which of two answers is better.")
    limit: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Only the first n exercises.")

    @field_validator("scorers", mode="before")
    @classmethod
    def words_are_scorers(cls, value: Any) -> Any:
        """A bare word is a scorer with its usual settings."""
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list | tuple):
            return value
        return tuple({"name": one} if isinstance(one, str) else one for one in value)


def shipped_suites() -> dict[str, Path]:
    """Name to file of the tasks and suites that come with the package."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def load_suite(name: str) -> list[tuple[TaskConfig, Path]]:
    """The tasks of a file or of a shipped suite, each with the file that it was written in.

    UsageError E450: no such file or name; E451: it is no task; E453: unknown scorer; E454: unknown generator.
    """
    tasks = list(tasks_of(find_suite(name, Path()), ()))
    names = [task.name for task, _ in tasks]
    twice = next((one for one in names if names.count(one) > 1), None)
    if twice is not None:
        where = Where(str(next(path for task, path in reversed(tasks) if task.name == twice)))
        raise UsageError(
            "E451", f"two tasks of the suite are called {twice}", where=where, fixes=["rename one of them"]
        )
    for task, path in tasks:
        check_task(task, path)
    return tasks


def find_suite(name: str, beside: Path) -> Path:
    """A file beside the suite that names it, a file from here, or a shipped one."""
    for path in (beside / name, Path(name).expanduser()):
        if path.is_file():
            return path
    known = shipped_suites()
    if name in known:
        return known[name]
    near = nearest(name, known)
    raise UsageError(
        "E450",
        f"no task or suite is called {name!r}, and there is no such file",
        where=Where(name),
        evidence=[f"shipped: {', '.join(known)}"],
        fixes=[f"did you mean {near}?"] if near else ["write a task file: docs/guides/evaluate.md"],
    )


def tasks_of(path: Path, above: tuple[Path, ...]) -> Iterator[tuple[TaskConfig, Path]]:
    """The tasks of one file: the task it is, or the list `tasks` of names, files and tasks."""
    tree = read_file(path)
    if path in above:
        raise wrong(path, "the suite names itself")
    if not isinstance(tree.value, dict) or not tree.value:
        raise wrong(path, "a task file is an object with a name and a kind")
    if "tasks" not in tree.value:
        yield task_of(tree, path, tree.value, ()), path
        return
    if set(tree.value) - {"tasks", "about"} or not isinstance(tree.value["tasks"], list) or not tree.value["tasks"]:
        raise wrong(path, "a suite is a list `tasks` and a line `about`, and nothing else")
    for at, one in enumerate(tree.value["tasks"]):
        if isinstance(one, str):
            yield from tasks_of(find_suite(one, path.parent), (*above, path))
        else:
            yield task_of(tree, path, one, ("tasks", at)), path


def task_of(tree: Tree, path: Path, value: Any, key: tuple[str | int, ...]) -> TaskConfig:
    for name, place in named_scorers(value):
        if name not in SCORERS:
            raise unknown_scorer(name, tree.places.get((*key, *place), Where(str(path))))
    try:
        return TaskConfig.model_validate(value)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        spot = tuple(part for part in detail["loc"] if part not in SCORERS)
        field = ".".join(map(str, (*key, *spot)))
        place = tree.places.get((*key, *spot)) or tree.places.get((*key, *spot[:-1])) or Where(str(path))
        where = Where(str(path), place.line, place.column, field)
        known = TaskConfig.model_fields
        near = nearest(str(spot[-1]), known) if detail["type"] == "extra_forbidden" else None
        fixes = [f"did you mean {near}?"] if near else ["see docs/guides/evaluate.md for every key of a task"]
        told = f"unknown key {spot[-1]}" if detail["type"] == "extra_forbidden" else f"{field}: {detail['msg']}"
        raise UsageError("E451", told, where=where, evidence=[f"keys: {', '.join(known)}"], fixes=fixes) from error


def named_scorers(value: Any) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """The names under `scorers`, with their places, whatever else is wrong."""
    listed = value.get("scorers") if isinstance(value, Mapping) else None
    for at, one in enumerate([listed] if isinstance(listed, str) else listed if isinstance(listed, list) else []):
        name = one.get("name") if isinstance(one, Mapping) else one
        if isinstance(name, str):
            yield name, ("scorers", at) if isinstance(listed, list) else ("scorers",)


def wrong(path: Path, message: str, fix: str = "see docs/guides/evaluate.md") -> UsageError:
    return UsageError("E451", message, where=Where(str(path)), fixes=[fix])


def check_task(task: TaskConfig, path: Path) -> None:
    """What the settings of a task must be together."""
    given = [name for name in ("made", "data", "exercises") if task.model_dump()[name]]
    if len(given) != 1:
        said = f"{' and '.join(given)} are both given" if given else "it has no exercises"
        raise wrong(path, f"task {task.name}: {said}", "give exactly one of made, data and exercises")
    if task.kind == "generation" and not task.scorers:
        raise wrong(path, f"task {task.name} generates answers and has no scorers", "scorers: [exact]")
    if task.kind != "generation" and task.scorers:
        raise wrong(path, f"task {task.name} is of kind {task.kind}, which has no scorers", "leave scorers out")
    titles = [scorer.title for scorer in task.scorers]
    if len(set(titles)) < len(titles):
        raise wrong(path, f"task {task.name} names one scorer twice", "write two tasks, one for each setting")
    for scorer in task.scorers:
        scorer.prepare()
    if task.made is not None and task.made.generator not in GENERATORS:
        near = nearest(task.made.generator, GENERATORS)
        raise UsageError(
            "E454",
            f"no generator is called {task.made.generator!r}",
            where=Where(str(path), field="made.generator"),
            evidence=[f"generators: {', '.join(GENERATORS)}"],
            fixes=[f"did you mean {near}?"] if near else ["give exercises or data"],
        )


def exercises_of(task: TaskConfig, path: Path, limit: int | None = None) -> list[Exercise]:
    """The exercises of a task; DataError E452 for one that lacks a field, E462 for a right answer that is no choice."""
    most = min((count for count in (task.limit, limit) if count is not None), default=None)
    found = [to_exercise(task, value, name, where) for name, value, where in records_of(task, path, most)]
    for exercise in found:
        for scorer in task.scorers:
            scorer.check(exercise)
    return found


def records_of(task: TaskConfig, path: Path, most: int | None) -> Iterator[tuple[str, dict[str, Any], Where]]:
    """Name, fields and place of each exercise."""
    if task.data is not None:
        file = path.parent / task.data
        source = SourceConfig(path=str(file if file.exists() else Path(task.data)))
        for record in read_source(source, limit=most):
            yield f"{Path(record.file).name}:{record.line}", record.value, Where(record.file, record.line)
        return
    made = task.made
    values = list(task.exercises) if made is None else make(made.generator, made.count, made.seed)
    for at, value in enumerate(values[:most]):
        yield f"{task.name}-{at + 1}", value, Where(str(path), field=f"exercise {at + 1}")


def to_exercise(task: TaskConfig, value: dict[str, Any], name: str, where: Where) -> Exercise:
    category = str(value.get(task.category, "") or "")
    if task.kind == "loss" and task.text in value:
        text = value[task.text]
        if not isinstance(text, str) or not text.strip():
            raise lacks(where, task.text, "its loss is measured")
        return Exercise(name, "", (text,), category=category, fields=value, where=where)
    prompt = filled(task.prompt, value, where)
    if task.kind == "choice":
        choices, right = choices_of(task, value, where)
        return Exercise(name, prompt, (choices[right],), choices, right, category, value, where)
    answers = answers_of(value.get(task.answer))
    if task.kind == "loss" and not answers:
        raise lacks(where, f"{task.text} or {task.answer}", "its loss is measured")
    return Exercise(name, prompt, answers, category=category, fields=value, where=where)


def answers_of(value: Any) -> tuple[str, ...]:
    """All that count as right; numbers are written out."""
    listed = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(one if isinstance(one, str) else f"{one:g}" if isinstance(one, float) else str(one) for one in listed)


def choices_of(task: TaskConfig, value: dict[str, Any], where: Where) -> tuple[tuple[str, ...], int]:
    """The choices and the place of the right one, which is given as a place, a letter or its text."""
    given = value.get(task.choices)
    if isinstance(given, dict) and isinstance(given.get("text"), list):
        labels, given = given.get("label"), given["text"]
    else:
        labels = None
    if not isinstance(given, list) or len(given) < 2 or not all(isinstance(one, str) and one.strip() for one in given):
        raise lacks(where, task.choices, "two or more texts to choose from")
    right = value.get(task.answer)
    if right is None:
        raise lacks(where, task.answer, "which choice is right?")
    if isinstance(right, int) and not isinstance(right, bool) and 0 <= right < len(given):
        return tuple(given), right
    named = labels if isinstance(labels, list) and right in labels else [*LETTERS[: len(given)]]
    ways: tuple[list[Any], list[Any]] = (given, named)
    for listed in ways:
        if right in listed:
            return tuple(given), listed.index(right)
    raise DataError(
        "E462",
        f"the right answer {right!r} is none of the {len(given)} choices",
        where=where,
        evidence=[f"choices: {', '.join(given)[:200]}"],
        fixes=["give its place counted from 0, its letter, or its text"],
    )
