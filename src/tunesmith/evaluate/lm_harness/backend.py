"""lm-evaluation-harness wrapped: its tasks by name, and Tunesmith as a model that it can ask."""

from __future__ import annotations

import io
import logging
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

import datasets
import lm_eval.tasks
import numpy as np
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from tunesmith.errors import Fix, MachineError, TunesmithError, UsageError, Where, nearest
from tunesmith.evaluate.lm_harness.local import check_folder, data_for
from tunesmith.evaluate.lm_harness.programs import METRIC
from tunesmith.evaluate.lm_harness.respondent import Respondent
from tunesmith.evaluate.scorers import code_not_allowed
from tunesmith.rollout.sandbox import check_sandbox

FOLDER = Path(lm_eval.tasks.__file__).parent
NAMED = re.compile(r"""^["']?(?:task|group|tag)["']?:[ \t]*["']?([\w.:-]+)["']?[ \t]*$""", re.M)
LISTED = re.compile(r"""^[ \t]*-[ \t]+["']?([\w.:-]+)["']?[ \t]*$""", re.M)
SHOT_SEED, DRAW_SEED, NUMPY_SEED = 1234, 0, 1234  # those of the harness's own command
OFFLINE = ("datasets", "huggingface_hub", "httpx", "requests", "urllib3", "aiohttp", "fsspec")

Hear = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """Which tasks, and how. `folder`: task files and data of one's own; `shots`: solved examples before a question."""

    names: tuple[str, ...]
    folder: Path | None = None
    limit: int | None = None
    shots: int | None = None
    chat: bool = False
    run_code: bool = False
    max_new_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """Tasks with their data. `groups`: by the name that was asked for; `weighted`: those whose figures are over all."""

    asked: Asked
    tasks: dict[str, Any]
    groups: dict[str, tuple[str, ...]]
    weighted: frozenset[str]


class TunesmithLM(LM):
    """Tunesmith behind the interface that the harness asks models through."""

    def __init__(self, respondent: Respondent, hear: Hear | None = None) -> None:
        super().__init__()
        self.respondent = respondent
        self.hear = hear

    def heard(self, what: str) -> Callable[[int, int], None] | None:
        hear = self.hear
        return None if hear is None else lambda done, total: hear(what, done, total)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        return self.respondent.likelihoods([one.args for one in requests], self.heard("choices"))

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        return self.respondent.rolling([one.args[0] for one in requests], self.heard("texts"))

    def generate_until(self, requests: list[Any]) -> list[str]:
        return self.respondent.write([one.args for one in requests], self.heard("answers"))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.respondent.chat(chat_history, asks=add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        return self.respondent.tokenizer.folder.name


def load(asked: Asked) -> Loaded:
    """The tasks of these names with their data.

    UsageError E466: no task has this name; E459: it runs answers as programs, and nobody allowed that. MachineError
    E467: its data cannot be had here. DataError E468: local data do not fit; E469: the task cannot be built.
    """
    if asked.folder is not None:
        check_folder(asked.folder)
    with quietly():
        index = indexed(asked)
        groups = {name: list(members(index, name, {})) for name in asked.names}
        specs = {spec["task"]: spec for group in groups.values() for spec in group}
        entries = {name: index.task_index.get(name) for name in specs}
        unsafe = [name for name, one in entries.items() if one is not None and (one.cfg or {}).get("unsafe_code")]
        if unsafe and not asked.run_code:
            raise code_not_allowed(unsafe[0])
        if unsafe:
            check_sandbox()
        for name, entry in entries.items():
            if entry is not None:
                specs[name] = {**specs[name], **data_for(name, entry.cfg or {}, entry.yaml_path, asked.folder)}
        random.seed(DRAW_SEED)
        np.random.seed(NUMPY_SEED)
        with ExitStack() as stack:
            if unsafe:
                stack.enter_context(own_metric())
            tasks = {name: built(index, name, spec) for name, spec in specs.items()}
    for task in tasks.values():
        adjust(task, asked)
    weighted = frozenset(name for name in groups if is_weighted(index.task_index[name].cfg))
    return Loaded(asked, tasks, {name: tuple(one["task"] for one in group) for name, group in groups.items()}, weighted)


def run(loaded: Loaded, respondent: Respondent, hear: Hear | None = None) -> dict[str, Any]:
    """What the harness makes of this model: figures, and every exercise with its answer under `samples`."""
    asked = loaded.asked
    for task in loaded.tasks.values():
        task.set_fewshot_seed(SHOT_SEED)
    random.seed(DRAW_SEED)
    np.random.seed(NUMPY_SEED)
    with quietly():
        found = evaluate(
            lm=TunesmithLM(respondent, hear),
            task_dict={"tasks": loaded.tasks},
            limit=asked.limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=asked.chat,
            fewshot_as_multiturn=asked.chat,
            confirm_run_unsafe_code=asked.run_code,
        )
    assert found is not None, "there is one process"
    return dict(found)


def adjust(task: Any, asked: Asked) -> None:
    """Solved examples as asked for, or as the task says; a task that never has any keeps that."""
    given = task.config.num_fewshot
    task.set_config("num_fewshot", asked.shots if asked.shots is not None and given != 0 else given or 0)
    if asked.max_new_tokens is not None and task.OUTPUT_TYPE == "generate_until":
        task.set_config("generation_kwargs", {"max_gen_toks": asked.max_new_tokens}, update=True)


def indexed(asked: Asked) -> TaskManager:
    """The tasks of the folder, and of the harness those whose files stand where the asked ones do.

    The harness reads all of its 14,000 task files to know one of them, which takes half a minute.
    """
    own = [asked.folder] if asked.folder is not None else []
    index = TaskManager(include_path=own, include_defaults=False)
    wanted = [name for name in asked.names if name not in index.task_index]
    if not wanted:
        return index
    places = named_in(FOLDER)
    known = {*places, *index.all_tasks}
    for name in wanted:
        if name not in known:
            raise unknown_task(name, known)
    waiting, folders, seen = list(wanted), list[Path](), set[str]()
    while waiting:  # a group names others, which may stand elsewhere
        name = waiting.pop()
        seen.add(name)
        for file in places.get(name, ()):
            if file.parent not in folders:
                folders.append(file.parent)
                texts = [path.read_text(encoding="utf-8") for path in file.parent.glob("*.yaml")]
                waiting += [one for text in texts for one in LISTED.findall(text) if one in places and one not in seen]
    return TaskManager(include_path=[*folders, *own], include_defaults=False)


def named_in(folder: Path) -> dict[str, list[Path]]:
    """The files that define a name or carry it as a tag."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("**/*.yaml")):
        text = file.read_text(encoding="utf-8", errors="replace")
        names = NAMED.findall(text)
        if "\ntag:" in f"\n{text}":
            names += LISTED.findall(text)
        for name in dict.fromkeys(names):
            found.setdefault(name, []).append(file)
    return found


def members(index: TaskManager, name: str, changes: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The tasks that a name stands for, each with what a group changes in it."""
    entry = index.task_index.get(name)
    if entry is None:
        raise unknown_task(name, index.all_tasks)
    listed = (entry.cfg or {}).get("task")
    if entry.kind.name == "TAG":  # which the index knows of one folder alone
        for one in sorted(other for other, held in index.task_index.items() if held.cfg and name in held.tags):
            yield from members(index, one, changes)
    elif isinstance(listed, list):
        for one in listed:
            inner = {"task": one} if isinstance(one, str) else dict(one)
            inside = inner.pop("group", None) or inner.pop("task")
            yield from members(index, inside, {**changes, **inner})
    else:
        yield {**changes, "task": name}


def is_weighted(config: Mapping[str, Any] | None) -> bool:
    """Whether a group's figures are those over all exercises of its tasks."""
    listed = (config or {}).get("aggregate_metric_list") or []
    listed = [listed] if isinstance(listed, dict) else listed
    return bool(listed) and all(one.get("weight_by_size", True) for one in listed)


def built(index: TaskManager, name: str, spec: dict[str, Any]) -> Any:
    """The task with its data."""
    try:
        return index.load([{"group": "asked", "task": [spec]}])["tasks"][name]
    except TunesmithError:
        raise
    except ImportError as error:
        raise lacks_package(name, error) from error
    except Exception as error:  # tasks are programs, which raise what they like
        if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in OFFLINE:
            raise no_data(name, error) from error
        told = f"{type(error).__name__}: {str(error)[:300]}"
        message = f"the harness cannot build the task {name}"
        fixes = ["look at the task file, and at the fields of its data"]
        raise UsageError("E469", message, where=Where(name), evidence=[told], fixes=fixes) from error


class WithoutBars(io.StringIO):
    """Standard error without the progress bars that are drawn there; rich writes to the real one."""

    def __init__(self, shown: TextIO) -> None:
        super().__init__()
        self.rich_proxied_file = shown

    def write(self, text: str, /) -> int:
        if "\r" not in text and text.strip():
            self.rich_proxied_file.write(text.rstrip("\n") + "\n")
        return len(text)


@contextmanager
def quietly() -> Iterator[None]:
    """Without the logs of the harness and of the hub, and without bars."""
    logs = {logging.getLogger(name): logging.getLogger(name).level for name in ("lm_eval", "huggingface_hub")}
    bars = datasets.is_progress_bar_enabled()
    for log in logs:
        log.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with redirect_stderr(WithoutBars(sys.stderr)):
            yield
    finally:
        for log, level in logs.items():
            log.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


@contextmanager
def own_metric() -> Iterator[None]:
    """Tasks that load the metric `code_eval` get the one that runs programs in Tunesmith's sandbox, without a hub."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "code_eval").mkdir()
        (Path(folder) / "code_eval" / "code_eval.py").write_text(METRIC, encoding="utf-8")
        with chdir(folder):
            yield


def unknown_task(name: str, known: Any) -> UsageError:
    near = nearest(name, known)
    fixes = [f"did you mean {near}?"] if near else []
    fixes.append("a task file of your own: --tasks-from FOLDER")
    return UsageError("E466", f"the harness has no task called {name!r}", where=Where(field="--suite"), fixes=fixes)


def lacks_package(name: str, error: ImportError) -> MachineError:
    told = error.name or "what it needs"
    fix = Fix("install it", command=f"pip install {error.name}" if error.name else "pip install 'tunesmith[harness]'")
    return MachineError("E465", f"the task {name} needs {told}, which is not installed", where=Where(name), fixes=[fix])


def no_data(name: str, error: Exception) -> MachineError:
    return MachineError(
        "E467",
        f"the data of {name} are not on this machine, and cannot be fetched from the hub",
        where=Where(name),
        evidence=[f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"],
        fixes=[
            f"give them as a file: --tasks-from FOLDER with FOLDER/{name}.jsonl",
            "fetch them once where there is a network; they are kept",
        ],
    )
