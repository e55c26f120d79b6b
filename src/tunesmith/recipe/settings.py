"""The settings of every room in one tree, and the shorthands in which they may be written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, Union

from pydantic import Field, model_validator

from tunesmith.config import Config
from tunesmith.configuring.reader import Key
from tunesmith.configuring.writer import write_yaml
from tunesmith.data.config import DataConfig, SourceConfig
from tunesmith.evaluate.config import EvaluateConfig
from tunesmith.models.config import ModelConfig
from tunesmith.objectives import OBJECTIVES, SFT, Objective
from tunesmith.objectives.logratios import DISTRIBUTION, REFERENCE
from tunesmith.recipe.online import OnlineConfig
from tunesmith.train.config import TrainConfig
from tunesmith.types import Task

if TYPE_CHECKING:  # a type checker cannot read the registry
    AnyObjective = Objective
elif len(OBJECTIVES) == 1:
    AnyObjective = OBJECTIVES[0]
else:
    AnyObjective = Annotated[Union[OBJECTIVES], Field(discriminator="name")]  # noqa: UP007

T = TypeVar("T")
_SOURCES = (
    ("data", "train"),
    ("data", "eval"),
    ("data", "general", "train"),
    ("data", "general", "eval"),
    ("evaluate", "data"),
)
_WORDS: dict[Key, str] = {
    ("objective",): "name",
    ("model", "adapter"): "method",
    ("model", "quantization"): "name",
    ("train", "optimizer"): "name",
    ("train", "schedule"): "name",
}
UNIONS: dict[Key, str] = {
    ("objective",): "name",
    ("model", "adapter"): "method",
    ("model", "quantization"): "name",
    ("train", "optimizer"): "name",
}
_DEFAULT_TAGS = {
    ("objective",): "sft",
    ("model", "adapter"): "lora",
    ("model", "quantization"): "nf4",
    ("train", "optimizer"): "adamw",
}


class RunConfig(Config):
    """Where a run is written and who else is told."""

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = Field(
        default=None,
        description="Name of the run's folder: letters, digits, dot, dash, underscore; empty: date and method.",
    )
    folder: str = Field(default="runs", description="Folder that holds the runs.")
    report_to: tuple[Literal["wandb", "trackio", "mlflow", "tensorboard", "none"], ...] = Field(
        default=("tensorboard",), description="Who gets the metrics besides the run's own files."
    )
    ranks: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="Processes of this machine that train together, each on a share of every step."
    )
    max_restarts: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=1, description="How often several ranks start again from the newest checkpoint when one fails."
    )
    hang_seconds: Annotated[float, Field(gt=0, le=86400)] | None = Field(
        default=None,
        description="Seconds without progress of any rank that count as a hang; empty: 5 median steps, at least 60.",
    )


class Recipe(Config):
    """Everything a run needs to know, before it meets a machine."""

    version: Literal[1] = Field(default=1, description="Version of the recipe format.")
    model: ModelConfig = Field(default=ModelConfig(), description="Which model, and what of it is trained.")
    data: DataConfig = Field(default=DataConfig(), description="What it learns from.")
    objective: AnyObjective = Field(
        default=SFT(), description="The rule the loss follows; of a list, the first. The others stand in also."
    )
    also: tuple[AnyObjective, ...] = Field(
        default=(), description="Further objectives on the same forward pass, each times its coefficient."
    )
    train: TrainConfig = Field(default=TrainConfig(), description="How it is trained.")
    online: OnlineConfig | None = Field(
        default=None, description="Rounds in which the model answers and learns from its marked answers; empty: none."
    )
    evaluate: EvaluateConfig = Field(default=EvaluateConfig(), description="What is measured afterwards.")
    run: RunConfig = Field(default=RunConfig(), description="Where the results go.")

    @model_validator(mode="before")
    @classmethod
    def _shorthands(cls, value: Any) -> Any:
        return expand(value)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """All of them; the first decides what the records are."""
        return (self.objective, *self.also)

    @property
    def task(self) -> Task:
        """What the records are to the objectives; the names of classes come from the data."""
        kind = self.objective.kind
        ahead = any(objective.looks_ahead for objective in self.objectives)
        return Task(kind, self.objective.reads, mismatches=kind == "feedback" and ahead)

    @property
    def has_reference(self) -> bool:
        return any(REFERENCE in objective.needs for objective in self.objectives)

    @property
    def compares_distributions(self) -> bool:
        """Whether a loss needs what the reference says of every next token."""
        return any(DISTRIBUTION in objective.needs for objective in self.objectives)

    def sized(self, body: int, device: str) -> Self:
        """The same with the microbatches that fit a model of `body` weights in its layers, where none are named."""
        return self.model_copy(update={"train": self.train.sized(body, device)})

    @property
    def compares(self) -> bool:
        """Whether the losses compare log-probabilities of answers, so that chance must not change them."""
        return self.task.reads == "logprobs" and self.task.kind not in ("sequence", "label")


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe as a file; loading it gives an equal recipe."""
    return write_yaml(recipe.model_dump(mode="json"))


def expand(value: Any) -> Any:
    """Shorthands in long form: a bare path for a source, a bare word for a method; anything else is left as it is."""
    if not isinstance(value, dict):
        return value
    tree = dict(value)
    if isinstance(tree.get("objective"), list | tuple) and tree["objective"]:
        tree["objective"], *others = tree["objective"]
        tree["also"] = [*others, *tree.get("also", ())]
    if isinstance(tree.get("also"), list | tuple):
        tree["also"] = [_tagged(one, "name", None) for one in tree["also"]]
    for *groups, name in _SOURCES:
        section: Any = tree
        for group in groups:
            inner = section.get(group)
            if not isinstance(inner, dict):
                break
            section[group] = section = dict(inner)
        else:
            if name in section:
                section[name] = _sources(section[name])
    for key, tag in _WORDS.items():
        parent: Any = tree
        if len(key) == 2:
            parent = tree.get(key[0])
            if not isinstance(parent, dict) or key[1] not in parent:
                continue
            parent = tree[key[0]] = dict(parent)
        if key[-1] in parent:
            parent[key[-1]] = _tagged(parent[key[-1]], tag, _DEFAULT_TAGS.get(key))
    return tree


def follow(value: Any, origins: Mapping[Key, T]) -> dict[Key, T]:
    """The origins of what stands in a tree as `expand` will leave it: of a list of objectives all but the first move.

    An entry without an origin of its own has that of the list.
    """
    listed = value.get("objective")
    if not isinstance(listed, list | tuple) or not listed:
        return dict(origins)
    moved = {_moved(key, len(listed)): origins[key] for key in sorted(origins, key=len)}
    if ("objective",) in origins:
        whole = origins["objective",]
        moved = {**{("also", index): whole for index in range(len(listed) - 1)}, **moved}
    return moved


def _moved(key: Key, listed: int) -> Key:
    """Where a key of a tree with a list of so many objectives goes."""
    if len(key) < 2:
        return key
    group, index = key[:2]
    if not isinstance(index, int):
        return key
    if group == "objective":
        return ("objective", *key[2:]) if index == 0 else ("also", index - 1, *key[2:])
    return ("also", index + listed - 1, *key[2:]) if group == "also" else key


def _sources(value: Any) -> Any:
    if isinstance(value, str | dict):
        value = [value]
    if not isinstance(value, list | tuple):
        return value
    return [{"path": entry} if isinstance(entry, str) else entry for entry in value]


def _tagged(value: Any, tag: str, default: str | None) -> Any:
    if isinstance(value, str):
        return {tag: value}
    if isinstance(value, dict) and default is not None and tag not in value:
        return {tag: default, **value}
    return value


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with files and folders named so that they are found from any working directory.

    A new model has its seed, so that the `model` part alone says which it is.
    """

    def sources(listed: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        return tuple(source.model_copy(update={"path": absolute(source.path)}) for source in listed)

    given = recipe.data
    general = given.general.model_copy(
        update={"train": sources(given.general.train), "eval": sources(given.general.eval)}
    )
    data = given.model_copy(update={"train": sources(given.train), "eval": sources(given.eval), "general": general})
    evaluate = recipe.evaluate.model_copy(update={"data": sources(recipe.evaluate.data)})
    places: dict[str, Any] = {"path": existing(recipe.model.path)}
    if recipe.model.adapter_path is not None:
        places["adapter_path"] = existing(recipe.model.adapter_path)
    fresh = recipe.model.fresh
    if fresh is not None:
        seed = recipe.train.seed if fresh.seed is None else fresh.seed
        places["fresh"] = fresh.model_copy(update={"tokenizer": existing(fresh.tokenizer), "seed": seed})
    places["merged_adapters"] = tuple(map(existing, recipe.model.merged_adapters))
    if recipe.model.reference.path is not None:
        reference = {"path": existing(recipe.model.reference.path)}
        places["reference"] = recipe.model.reference.model_copy(update=reference)
    model = recipe.model.model_copy(update=places)
    online = _with_absolute_reward(recipe.online)
    return recipe.model_copy(
        update={"data": data, "evaluate": evaluate, "model": model, "online": online, "train": _paged(recipe.train)}
    )


def _paged(train: TrainConfig) -> TrainConfig:
    folder = train.optimizer.paging_folder
    if folder is None:
        return train
    return train.model_copy(
        update={"optimizer": train.optimizer.model_copy(update={"paging_folder": absolute(folder)})}
    )


def _with_absolute_reward(online: OnlineConfig | None) -> OnlineConfig | None:
    if online is None or online.label.reward is None:
        return online
    label = online.label.model_copy(update={"reward": existing(online.label.reward)})
    return online.model_copy(update={"label": label})


def absolute(path: str) -> str:
    return path if path.startswith("hub:") else str(Path(path).expanduser().absolute())


def existing(path: str) -> str:
    """A local path in full; a hub id or `starter` as it is."""
    return absolute(path) if path != "starter" and Path(path).expanduser().exists() else path
