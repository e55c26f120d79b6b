"""What the values of a head mean, told by a small file beside the weights and by the config of transformers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from transformers import PreTrainedConfig

from tunesmith.models.safety import read_json_object
from tunesmith.types import Kind, Task

FILE = "head.json"
OUTPUT_NAMES: dict[Kind, str] = {"label": "value", "process": "step"}  # of a head with one output; else it is a reward


@dataclass(frozen=True, slots=True)
class Meaning:
    """What the records of the head's training were, the names of its classes, and where its rewards are centred.

    `offset` is the mean reward of the answers in `centred_on`; scores are told without it. The head itself is never
    shifted, so that transformers gives the values that were trained.
    """

    kind: Kind = "pair"
    classes: tuple[str, ...] = ()
    offset: float = 0.0
    centred_on: str = ""

    @property
    def task(self) -> Task:
        return Task(self.kind, "values", self.classes)

    @property
    def is_reward(self) -> bool:
        """Whether higher is better, on a scale of its own."""
        return self.kind in ("pair", "ranking", "feedback")


def meaning_of(task: Task) -> Meaning:
    return Meaning(task.kind, task.classes)


def read_meaning(folder: Path) -> Meaning:
    """As the folder's file says; without one, classes by the names in config.json, and one output is a reward."""
    if (folder / FILE).is_file():
        return from_json(read_json_object(folder / FILE))
    path = folder / "config.json"
    labels = read_json_object(path).get("id2label") if path.is_file() else None
    if isinstance(labels, dict) and len(labels) > 1:
        return Meaning("label", tuple(str(name) for _, name in sorted(labels.items(), key=lambda pair: int(pair[0]))))
    return Meaning()


def from_json(value: dict[str, Any]) -> Meaning:
    kinds: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
    classes, offset = value.get("classes"), value.get("offset")
    return Meaning(
        kinds.get(str(value.get("kind")), "pair"),
        tuple(map(str, classes)) if isinstance(classes, list | tuple) else (),
        float(offset) if isinstance(offset, int | float) else 0.0,
        str(value.get("centred_on", "")),
    )


def write_meaning(folder: Path, meaning: Meaning) -> None:
    text = json.dumps({"schema": 1, **asdict(meaning)}, ensure_ascii=False, indent=2)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def store_offset(folder: Path, offset: float, centred_on: str) -> None:
    """Remember the mean reward of a reference set; the weights stay as they are."""
    write_meaning(folder, replace(read_meaning(folder), offset=offset, centred_on=centred_on))


def name_outputs(config: PreTrainedConfig, meaning: Meaning) -> None:
    """Say in the config what each output is, in the words of transformers."""
    names = meaning.classes or (OUTPUT_NAMES.get(meaning.kind, "reward"),)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: place for place, name in enumerate(names)}
    by_chance = "multi_label_classification"  # a sigmoid of each output
    single = by_chance if meaning.kind in ("feedback", "process") else "regression"
    config.problem_type = "single_label_classification" if meaning.classes else single
