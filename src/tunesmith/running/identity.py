"""What makes a run the run it is: a resume must find it unchanged."""

from __future__ import annotations

from typing import Any

from tunesmith.models.content import content_hash
from tunesmith.models.locate import locate
from tunesmith.models.stack import stacked_hash
from tunesmith.recipe import Recipe, with_absolute_paths
from tunesmith.redaction import redacted_tree
from tunesmith.running.inputs import Inputs
from tunesmith.track.run_dir import RunDir
from tunesmith.train.position import check_same, without

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
        if not key.startswith(FREE_TO_CHANGE) and key not in HASHED
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


def check_identity(run: RunDir, recipe: Recipe, inputs: Inputs, ignore: tuple[str, ...]) -> None:
    """A run goes on only as what it began as, also when it has no checkpoint yet."""
    began = run.read_run().get("identity")
    if began is not None:
        check_same(without(began, ignore), without(identity(recipe, inputs), ignore))


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat
