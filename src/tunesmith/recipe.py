"""A run described: the settings of every room in one tree, read from a file, the environment and key=value."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field, model_validator

from tunesmith.config import Config
from tunesmith.configuring.layers import DEFAULT, Layers, Origin, dotted
from tunesmith.configuring.load import check, leaves
from tunesmith.configuring.problems import usage_error
from tunesmith.configuring.reader import Key, read_file
from tunesmith.configuring.shipped import find_recipe
from tunesmith.configuring.writer import write_yaml
from tunesmith.data.config import DataConfig
from tunesmith.errors import Diagnostic
from tunesmith.evaluate.config import EvaluateConfig
from tunesmith.models.config import ModelConfig
from tunesmith.objectives import OBJECTIVES, SFT, Objective
from tunesmith.recipe_checks import contradictions
from tunesmith.train.config import TrainConfig

if TYPE_CHECKING:
    AnyObjective = Objective
elif len(OBJECTIVES) == 1:
    AnyObjective = OBJECTIVES[0]
else:
    AnyObjective = Annotated[Union[OBJECTIVES], Field(discriminator="name")]  # noqa: UP007

_SOURCES: tuple[tuple[str, str], ...] = (("data", "train"), ("data", "eval"), ("evaluate", "data"))
_WORDS: dict[Key, str] = {
    ("objective",): "name",
    ("model", "adapter"): "method",
    ("train", "optimizer"): "name",
    ("train", "schedule"): "name",
}
_UNIONS: dict[Key, str] = {("objective",): "name", ("model", "adapter"): "method"}
_DEFAULT_TAGS = {("objective",): "sft", ("model", "adapter"): "lora"}


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


class Recipe(Config):
    """Everything a run needs to know, before it meets a machine."""

    version: Literal[1] = Field(default=1, description="Version of the recipe format.")
    model: ModelConfig = Field(default=ModelConfig(), description="Which model, and what of it is trained.")
    data: DataConfig = Field(default=DataConfig(), description="What it learns from.")
    objective: AnyObjective = Field(default=SFT(), description="The rule the loss follows.")
    train: TrainConfig = Field(default=TrainConfig(), description="How it is trained.")
    evaluate: EvaluateConfig = Field(default=EvaluateConfig(), description="What is measured afterwards.")
    run: RunConfig = Field(default=RunConfig(), description="Where the results go.")

    @model_validator(mode="before")
    @classmethod
    def _shorthands(cls, value: Any) -> Any:
        return expand(value)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checked recipe, the origin of each leaf that was set, and warnings to print."""

    recipe: Recipe
    origins: dict[str, Origin]
    file: Path | None = None
    warnings: tuple[Diagnostic, ...] = ()

    def values(self) -> list[tuple[str, Any, Origin]]:
        """Every leaf with its value and origin, defaults included."""
        return [
            (dotted(key), value, self.origins.get(dotted(key), DEFAULT))
            for key, value in leaves(self.recipe.model_dump(mode="json"))
        ]


def load_recipe(
    path: Path | str | None, overrides: Sequence[str] = (), environment: Mapping[str, str] = os.environ
) -> Loaded:
    """Defaults < file < environment (`TUNESMITH__TRAIN__STEPS=20`) < `key=value`; `path` may name a shipped recipe.

    Raises UsageError with file, line and field for every fault, Unsafe for a file that is an attack.
    """
    layers = Layers(expand, _UNIONS)
    file = None if path is None else find_recipe(str(path))
    if file is not None:
        layers.add_file(read_file(file), str(file))
    layers.add_environment(environment)
    for override in overrides:
        layers.add_override(override)
    recipe = check(Recipe, layers)
    origins = {dotted(key): layers.origin(key) for key, _ in leaves(layers.value)}
    found = contradictions(recipe, origins, str(path or ""))
    errors = [diagnostic for diagnostic in found if diagnostic.level == "error"]
    if errors:
        raise usage_error(errors)
    return Loaded(recipe, origins, file, tuple(found))


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe as a file; loading it gives an equal recipe."""
    return write_yaml(recipe.model_dump(mode="json"))


def expand(value: Any) -> Any:
    """Shorthands in long form: a bare path for a source, a bare word for a method; anything else is left as it is."""
    if not isinstance(value, dict):
        return value
    tree = dict(value)
    for group, name in _SOURCES:
        section = tree.get(group)
        if isinstance(section, dict) and name in section:
            tree[group] = {**section, name: _sources(section[name])}
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
