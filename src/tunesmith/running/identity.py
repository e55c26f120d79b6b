"""What makes a run the run it is: a resume must find it unchanged."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_jsonable_python

from tunesmith.config import Config
from tunesmith.errors import Diagnostic
from tunesmith.models.content import content_hash
from tunesmith.models.locate import locate
from tunesmith.models.stack import stacked_hash
from tunesmith.recipe import Recipe, with_absolute_paths
from tunesmith.recipe.gone import AT_DEFAULT, settings_gone
from tunesmith.redaction import redacted_tree
from tunesmith.running.inputs import Inputs
from tunesmith.track.run_dir import RunDir
from tunesmith.train.position import Known, check_same, flatten, without

DATA_HASH = "data hash"
HASHED = (  # by content
    "data.train",
    "data.eval",
    "data.general.train",
    "data.general.eval",
    "model.path",
    "model.fresh.tokenizer",
    "model.adapter_path",
    "model.merged_adapters",
    "model.reference.path",
)
FREE_TO_CHANGE = (
    "run.",
    "evaluate.",
    "train.checkpoint.",
    "train.evaluate_every",
    "train.sample_",
    "train.threads",
    "train.profile",
    "train.watch_layers",
    "train.stability.replica_check_every",
    "train.activation_checkpointing",  # the same to the bit, as is
    "train.optimizer.in_backward",
    "train.optimizer.paging",
)


def identity(recipe: Recipe, inputs: Inputs) -> dict[str, Any]:
    """The flat settings that a resume must find unchanged, with hashes of data, tokenizer and base weights."""
    flat = {
        key: value
        for key, value in flatten(with_absolute_paths(recipe).model_dump(mode="json")).items()
        if is_compared(key)
    }
    return {
        **redacted_tree(flat),
        DATA_HASH: inputs.train.key,
        "evaluation data hash": None if inputs.eval is None else inputs.eval.key,
        "general data hash": None if inputs.general is None else inputs.general.key,
        "source weights": [source.weight for source in recipe.data.trained],
        "tokenizer hash": inputs.tokenizer.fingerprint(),
        "base hash": stacked_hash(inputs.base, recipe.model.merged_adapters),
        "adapter hash": hash_of(recipe.model.adapter_path),
        "reference hash": hash_of(recipe.model.reference.path),
    }


def hash_of(path: str | None) -> str | None:
    return None if path is None else content_hash(locate(path))


def is_compared(key: str) -> bool:
    return not key.startswith(FREE_TO_CHANGE) and key not in HASHED


def known_settings(recipe: Recipe) -> Known:
    """What a checkpoint or `run.json` of an older version is compared with, where it lacks settings of the recipe."""
    return Known(defaults_of(recipe), is_compared)


def defaults_of(config: Config, prefix: str = "") -> dict[str, Any]:
    """The default of every setting and of every group, by its key; of a variant, those of the chosen one."""
    found: dict[str, Any] = {}
    for name, value in config:
        key, field = f"{prefix}{name}", type(config).model_fields[name]
        if not field.is_required():
            found[key] = to_jsonable_python(field.get_default(call_default_factory=True, validated_data={}))
        if isinstance(value, Config):
            found |= defaults_of(value, f"{key}.")
        elif isinstance(value, tuple):
            for index, each in enumerate(value):
                if isinstance(each, Config):
                    found |= defaults_of(each, f"{key}.{index}.")
    return found


def at_default(recipe: Recipe) -> list[str]:
    """The settings that a later version may lack without changing this run."""
    flat, usual = flatten(recipe.model_dump(mode="json")), defaults_of(recipe)
    return sorted(key for key, value in flat.items() if key in usual and usual[key] == value)


def check_identity(run: RunDir, recipe: Recipe, inputs: Inputs, ignore: tuple[str, ...]) -> Diagnostic | None:
    """A run goes on only as what it began as, also when it has no checkpoint yet.

    The warning W553 where it was begun with settings that this version does not have, and not at their defaults.
    """
    about = run.read_run()
    began = about.get("identity")
    if began is None:
        return None
    gone = check_same(without(began, ignore), without(identity(recipe, inputs), ignore), known_settings(recipe))
    return settings_gone(gone, about.get(AT_DEFAULT, ()), run.config_file)
